package render_test

import (
	"flag"
	"os"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/walpost/walpost/orders/notify/render"
)

var update = flag.Bool("update", false, "write the goldens")

func order(kind, language string) render.Mail {
	m := render.Mail{
		Kind: kind, Language: language, OrderID: "0198c0de-0000-7000-8000-000000000001", Number: "100001", Total: 4480, Currency: "EUR",
		Lines: []render.Line{
			{SKU: "TEA-100", Name: `Green tea "first flush" <100 g>`, Picture: "https://shop.example/tea.jpg?size=48&x=\"y\"", Quantity: 2, UnitPrice: 1990},
			{SKU: "CUP.white", Name: "CUP.white", Quantity: 1, UnitPrice: 500},
		},
	}
	switch kind {
	case "shipped":
		m.TrackingCode = "JD0146 <00>"
	case "rejected":
		m.Lines[0].Available = new(int64(1))
		m.Lines[1].Available = new(int64(0))
	}
	return m
}

// People review the goldens: run go test ./orders/notify/render -update, and look at them.
func TestMailsAreAsTheGoldensShow(t *testing.T) {
	templates, err := render.Parse(render.BuiltIn())
	if err != nil {
		t.Fatal(err)
	}
	for _, kind := range []string{"confirmed", "rejected", "shipped"} {
		for _, language := range render.Languages {
			got, err := templates.Render(order(kind, language))
			if err != nil {
				t.Fatal(err)
			}
			for path, text := range map[string]string{
				"testdata/" + kind + "." + language + ".html": got.HTML,
				"testdata/" + kind + "." + language + ".txt":  "Subject: " + got.Subject + "\n\n" + got.Text,
			} {
				if *update {
					if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
						t.Fatal(err)
					}
				}
				want, err := os.ReadFile(path)
				if err != nil || string(want) != text {
					t.Errorf("%s (%v) differs from the rendered mail:\n%s", path, err, text)
				}
			}
		}
	}
}

func TestATemplateThatFailsIsNamed(t *testing.T) {
	good := fstest.MapFS{"mail.html": {Data: []byte("h")}, "mail.txt": {Data: []byte("t")}, "subject.txt": {Data: []byte("s")}}
	with := func(name, text string) fstest.MapFS {
		all := fstest.MapFS{}
		for n, f := range good {
			all[n] = f
		}
		all[name] = &fstest.MapFile{Data: []byte(text)}
		if text == "" {
			delete(all, name)
		}
		return all
	}
	for name, c := range map[string]struct {
		folder fstest.MapFS
		mail   render.Mail
		want   string
	}{
		"does not parse":        {with("mail.html", "{{"), order("shipped", "en"), "mail.html"},
		"is missing":            {with("mail.txt", ""), order("shipped", "en"), "mail.txt"},
		"unknown template":      {with("mail.txt", "{{template \"other\"}}"), order("shipped", "en"), "other"},
		"unknown field":         {with("mail.html", "{{.Unknown}}"), order("shipped", "en"), "Unknown"},
		"fails on one kind":     {with("mail.html", "{{slice .TrackingCode 0 40}}"), order("shipped", "en"), "mail.html"},
		"breaks the subject":    {with("subject.txt", "a\r\nBcc: b"), order("shipped", "en"), "subject.txt"},
		"an empty subject":      {with("subject.txt", " \n"), order("shipped", "en"), "subject.txt"},
		"an unknown language":   {good, order("shipped", "xx"), `"xx"`},
		"an unknown kind":       {good, order("lost", "en"), `"lost"`},
		"an endless one":        {with("mail.html", `{{define "a"}}{{template "a" .}}{{end}}{{template "a" .}}`), order("shipped", "en"), "depth"},
		"writes half, and ends": {with("mail.txt", "half {{index .Lines 9}}"), order("shipped", "en"), "mail.txt"},
	} {
		t.Run(name, func(t *testing.T) {
			templates, err := render.Parse(c.folder)
			var got render.Rendered
			if err == nil {
				got, err = templates.Render(c.mail)
			}
			if err == nil || !strings.Contains(err.Error(), c.want) || got != (render.Rendered{}) {
				t.Errorf("got %+v, %v; want %q in the error and nothing rendered", got, err, c.want)
			}
		})
	}
}

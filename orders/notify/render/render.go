// Package render makes a mail from an order: a subject, HTML made of components, and plain text, in each of Languages.
//
//	mail.html ─▶ header · badge · lines · footer        mail.txt        subject.txt
//
// Render returns a whole mail, or an error that names the template that failed.
package render

import (
	"embed"
	"errors"
	"fmt"
	htmltemplate "html/template"
	"io/fs"
	"maps"
	"slices"
	"strings"
	texttemplate "text/template"
	"unicode"

	"github.com/walpost/walpost/orders"
)

//go:embed templates
var builtIn embed.FS

// Mail is the data for the templates.
type Mail struct {
	Kind         string // confirmed, rejected or shipped
	Language     string // one of Languages
	OrderID      string
	Number       string // the order's number for people
	Lines        []Line
	Total        orders.Money
	Currency     string
	TrackingCode string // of shipped; may be empty
}

// Line is one line of the order.
type Line struct {
	SKU       string
	Name      string // the SKU if the product has no description
	Picture   string // a URL, or empty
	Quantity  int
	UnitPrice orders.Money
	Available *int64 // of rejected, on the lines that were short: how many there were
}

// Sum returns the line's amount.
func (l Line) Sum() orders.Money { return l.UnitPrice * orders.Money(l.Quantity) }

// Rendered is a mail, ready to be sent.
type Rendered struct{ Subject, HTML, Text string }

// Languages are the languages of mails. The first is the default.
var Languages = []string{"en", "de"}

// Templates render mails. They may be used concurrently.
type Templates struct {
	html *htmltemplate.Template
	text *texttemplate.Template
}

// BuiltIn returns the templates of this package.
func BuiltIn() fs.FS {
	folder, err := fs.Sub(builtIn, "templates")
	if err != nil {
		panic(err) // the name is a constant
	}
	return folder
}

// Parse reads the templates *.html and *.txt of folder. Among them must be mail.html, mail.txt and subject.txt.
func Parse(folder fs.FS) (*Templates, error) {
	html, htmlErr := htmltemplate.New("").Option("missingkey=error").ParseFS(folder, "*.html")
	text, textErr := texttemplate.New("").Option("missingkey=error").ParseFS(folder, "*.txt")
	if err := errors.Join(htmlErr, textErr); err != nil {
		return nil, err
	}
	for name, there := range map[string]bool{
		"mail.html": html.Lookup("mail.html") != nil, "mail.txt": text.Lookup("mail.txt") != nil, "subject.txt": text.Lookup("subject.txt") != nil,
	} {
		if !there {
			return nil, fmt.Errorf("template %s is missing", name)
		}
	}
	return &Templates{html, text}, nil
}

// view is a Mail with the words of its language.
type view struct {
	Mail
	Words words
	Story story
}

// Money returns an amount as text in the mail's language.
func (v view) Money(m orders.Money) string {
	text := m.String()
	if v.Language == "de" {
		text = strings.Replace(text, ".", ",", 1)
	}
	return text + " " + v.Currency
}

// Render returns the mail for m.
func (t *Templates) Render(m Mail) (Rendered, error) {
	said, ok := vocabulary[m.Language]
	if !ok {
		return Rendered{}, fmt.Errorf("there are no words in language %q: one of %s", m.Language, strings.Join(slices.Sorted(maps.Keys(vocabulary)), ", "))
	}
	told, ok := said.stories[m.Kind]
	if !ok {
		return Rendered{}, fmt.Errorf("there is no mail of kind %q", m.Kind)
	}
	v := view{m, said, told}
	var subject, html, text strings.Builder
	if err := errors.Join(
		t.text.ExecuteTemplate(&subject, "subject.txt", v),
		t.html.ExecuteTemplate(&html, "mail.html", v),
		t.text.ExecuteTemplate(&text, "mail.txt", v)); err != nil {
		return Rendered{}, err
	}
	r := Rendered{strings.TrimSpace(subject.String()), html.String(), text.String()}
	if r.Subject == "" || strings.ContainsFunc(r.Subject, unicode.IsControl) {
		return Rendered{}, errors.New("template subject.txt: a subject is one line and not empty")
	}
	return r, nil
}

//go:build chromium

package browser_test

import (
	"cmp"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/chromedp/chromedp"

	"github.com/walpost/walpost/cdc/cdctest"
)

// at returns the address of a state's page, from a server that runs until the test ends.
func (s *state) at(t testing.TB) string {
	t.Helper()
	return serve(t, s.Options, s.make(t)...).url(cmp.Or(s.path, "/"))
}

// opened opens what the state shows opened.
func (s *state) opened(b *tab) {
	b.t.Helper()
	if s.open {
		eval[int](b, "document.querySelectorAll('details').forEach((d) => d.open = true), 0")
	}
}

// TestStates opens each state in the browser and reads what a person reads there.
func TestStates(t *testing.T) {
	for _, s := range states {
		t.Run(s.name, func(t *testing.T) {
			t.Parallel()
			address := s.at(t)
			b := newTab(t, form{width: 1280})
			b.open(address)
			live := eval[bool](b, "'live' in document.body.dataset")
			if live {
				cdctest.Eventually(t, 20e9, func() error {
					if b.received() == 0 {
						return fmt.Errorf("no event came")
					}
					return nil
				})
			}
			s.opened(b)
			text := b.text()
			for _, want := range s.says {
				if !strings.Contains(text, want) {
					t.Errorf("the page does not say %q", want)
				}
			}
			for _, not := range s.not {
				if strings.Contains(text, not) {
					t.Errorf("the page says %q", not)
				}
			}
			codes := eval[[]string](b, "[...document.querySelectorAll('code')].filter((c) => c.checkVisibility()).map((c) => c.innerText)")
			for _, want := range s.runs {
				if !contains(codes, want) {
					t.Errorf("there is no command %q to copy: %q", want, codes)
				}
			}
			if title, want := eval[string](b, "document.title"), cmp.Or(s.title, b.name())+" · walpost"; title != want {
				t.Errorf("the title is %q, want %q", title, want)
			}
			b.harmless()
			b.named()
			if t.Failed() {
				t.Logf("the page says:\n%.6000s", text)
			}

			without := newTab(t, form{width: 1280, without: true})
			without.open(address)
			s.opened(without)
			if is, want := timeless(without.text()), timeless(text); is != want {
				t.Errorf("without JavaScript the page differs:\n%s", differ(want, is))
			}
			without.clean(s.status()...)

			b.axe("light, 1280")
			forms := []form{{width: 360, dark: true}}
			if s.wide {
				forms = append(forms, form{width: 3840})
			}
			if s.short {
				forms = nil
			}
			for _, f := range forms {
				b.form(f)
				b.fits(f.width)
				if f.dark {
					b.axe("dark, 360")
				}
			}
			b.clean(s.status()...)
		})
	}
}

// status returns what the browser's log may say of the answer's status.
func (s *state) status() []string {
	if s.title == "not here" {
		return []string{"404"}
	}
	return nil
}

func contains(all []string, want string) bool {
	for _, a := range all {
		if a == want {
			return true
		}
	}
	return false
}

// name returns the pipeline's name, which is the page's heading.
func (b *tab) name() string {
	b.t.Helper()
	return eval[string](b, "document.querySelector('h1').innerText")
}

// harmless fails the test if the page has an element or an attribute that can only come from a hostile value.
func (b *tab) harmless() {
	b.t.Helper()
	for _, bad := range eval[[]string](b, `[...document.querySelectorAll("*")].flatMap((e) => {
		const bad = [];
		const known = e.matches("script[src='/page.js'], img[src='/icon.svg'], svg.plot, .scale svg");
		if (!known && e.matches("script, style, img, iframe, object, embed, svg, base, meta[http-equiv], i, video, audio, template")) bad.push(e.outerHTML.slice(0, 200));
		for (const a of e.attributes) {
			if (a.name.startsWith("on") || a.name === "style" || a.name === "srcdoc" || (["href", "src", "action", "xlink:href"].includes(a.name) && !/^[/?#](?!\/)/.test(a.value))) bad.push(a.name + "=" + a.value.slice(0, 200));
		}
		return bad;
	})`) {
		b.t.Errorf("the page has %s", bad)
	}
}

// named fails the test if a place that scrolls, and that Tab reaches therefore, has no name or shares it. axe-core asks for the first half.
func (b *tab) named() {
	b.t.Helper()
	for _, bad := range eval[[]string](b, `[...document.querySelectorAll("[tabindex]")].filter((e, i, all) => e.role !== "region" || !e.ariaLabel || all.some((o) => o !== e && o.ariaLabel === e.ariaLabel)).map((e) => e.outerHTML.slice(0, 120))`) {
		b.t.Errorf("this has no name: %s", bad)
	}
}

// fits fails the test if a person has to scroll the page sideways, or if something stands beyond the edge of its card.
func (b *tab) fits(width int64) {
	b.t.Helper()
	if is := eval[int64](b, "document.scrollingElement.scrollWidth"); is > width {
		b.t.Errorf("%d wide, the page needs %d", width, is)
	}
	if is := eval[int](b, "[...document.querySelectorAll('.positions .scroll, .table .scroll')].findIndex((e) => e.scrollWidth > e.clientWidth)"); is >= 0 {
		b.t.Errorf("%d wide, a person has to scroll the positions or the pipelines sideways: %s", width, eval[string](b, `[...document.querySelectorAll(".positions .scroll *, .table .scroll *")].filter((e) => e.getBoundingClientRect().right > e.closest(".scroll").getBoundingClientRect().right + 1).slice(0, 3).map((e) => e.outerHTML.slice(0, 150)).join("; ")`))
	}
	for _, beyond := range eval[[]string](b, `[...document.querySelectorAll("main > section")].flatMap((s) => {
		const edge = s.getBoundingClientRect().right - parseFloat(getComputedStyle(s).paddingRight) + 1;
		return [...s.querySelectorAll("*")].filter((e) => e.getBoundingClientRect().right > edge && !e.parentElement.closest(".scroll, .row, .far, svg") && !e.matches(".far"));
	}).slice(0, 5).map((e) => e.outerHTML.slice(0, 200))`) {
		b.t.Errorf("%d wide, this is beyond the edge: %s", width, beyond)
	}
}

var clocks = regexp.MustCompile(`(\d{4}-\d\d-\d\d )?\d\d:\d\d:\d\d`)

// timeless returns a page's text without times of the day, and lines without spaces at their ends.
func timeless(text string) string {
	lines := strings.Split(clocks.ReplaceAllString(text, "00:00:00"), "\n")
	for i := range lines {
		lines[i] = strings.TrimSpace(lines[i])
	}
	return strings.Join(lines, "\n")
}

// differ returns the first lines that differ.
func differ(want, is string) string {
	a, b := strings.Split(want, "\n"), strings.Split(is, "\n")
	for i := range a {
		if i >= len(b) || a[i] != b[i] {
			return fmt.Sprintf("with:    %.400q\nwithout: %.400q", a[i:min(i+3, len(a))], b[min(i, len(b)):min(i+3, len(b))])
		}
	}
	return fmt.Sprintf("without: %.400q", b[len(a):])
}

// TestScreenshots writes a picture of each state in both schemes and three widths into a folder.
//
//	go test -tags chromium ./cdc/page/browser -run TestScreenshots -args -out DIR
func TestScreenshots(t *testing.T) {
	if *out == "" {
		t.Fatal("name a folder for the pictures: go test -tags chromium ./cdc/page/browser -run TestScreenshots -args -out DIR")
	}
	if err := os.MkdirAll(*out, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, s := range states {
		t.Run(s.name, func(t *testing.T) {
			t.Parallel()
			address := s.at(t)
			b := newTab(t, form{width: 1280})
			b.open(address)
			s.opened(b)
			for _, f := range []form{{width: 360}, {width: 360, dark: true}, {width: 1280}, {width: 1280, dark: true}, {width: 3840}, {width: 3840, dark: true}} {
				b.form(f)
				b.do(chromedp.EmulateViewport(f.width, max(height, eval[int64](b, "document.scrollingElement.scrollHeight"))))
				picture, err := chromedp.Run(b.ctx, chromedp.FullScreenshot(100))
				if err != nil {
					t.Fatal(err)
				}
				scheme := map[bool]string{true: "dark", false: "light"}[f.dark]
				file := fmt.Sprintf("%s-%d-%s.png", strings.ReplaceAll(strings.ReplaceAll(s.name, ",", ""), " ", "-"), f.width, scheme)
				if err := os.WriteFile(filepath.Join(*out, file), picture, 0o644); err != nil {
					t.Fatal(err)
				}
			}
		})
	}
}

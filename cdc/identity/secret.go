package identity

import (
	"encoding/base64"
	"fmt"
	"io"
	"net/url"
	"reflect"
	"slices"
	"strings"
)

// Secret is a word that nothing prints: fmt, JSON, YAML and logs show *** in its place.
type Secret string

// Reveal returns the word.
func (s Secret) Reveal() string { return string(s) }

// String returns ***, or nothing for an empty Secret.
func (s Secret) String() string {
	if s == "" {
		return ""
	}
	return "***"
}

// Format writes what String returns, for every verb.
func (s Secret) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, s.String()) }

// MarshalText returns what String returns.
func (s Secret) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// Hide returns a copy of a struct in which what its tags call secret:"yes" can be shown: of a URL all but passwords, of everything else ***.
func Hide[T any](v T) T {
	hide(reflect.ValueOf(&v).Elem())
	return v
}

// Show writes a value without methods as fmt would: a type's Format calls it with what Hide returns.
func Show(f fmt.State, verb rune, v any) { _, _ = fmt.Fprintf(f, fmt.FormatString(f, verb), v) }

func hide(v reflect.Value) {
	for i := range v.NumField() {
		field, secret := v.Field(i), v.Type().Field(i).Tag.Get("secret") != ""
		switch {
		case !field.CanSet():
		case field.Kind() == reflect.Struct:
			hide(field)
		case secret && field.Kind() == reflect.String && field.Len() > 0:
			field.SetString(HideURL(field.String()))
		case secret:
			field.SetZero()
		}
	}
}

// HideURL returns a URL without passwords, in its user and in its parameters, and *** for every other text.
func HideURL(text string) string {
	u, err := url.Parse(text)
	if err != nil || u.Scheme == "" || u.Host == "" {
		return "***"
	}
	if u.RawQuery != "" {
		query := u.Query()
		for name := range query {
			if !slices.Contains(harmless, name) {
				query.Set(name, "xxxxx")
			}
		}
		u.RawQuery = query.Encode()
	}
	u.Fragment, u.RawFragment = "", "" // the rest of a password with a # that is not escaped
	return u.Redacted()
}

// harmless are the parameters of a URL that can be shown.
var harmless = []string{
	"sslmode", "sslrootcert", "sslcert", "sslkey", "sslnegotiation", "channel_binding", "require_auth", "host", "hostaddr", "port", "user", "dbname",
	"passfile", "password_file", "service", "servicefile", "target_session_attrs", "load_balance_hosts", "connect_timeout", "application_name", "starttls",
}

// Unshown is embedded in what has secrets in fields that are not exported: fmt does not call Format of these, and would write them.
type Unshown struct{}

// Format writes nothing of what holds it.
func (Unshown) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, "(not shown: it has secrets)") }

// Scrub returns what another program has written without the word, should it repeat that: plain, in base64, or as it is written in a URL.
func (s Secret) Scrub(text, user string) string {
	b64 := base64.StdEncoding.EncodeToString
	word := s.Reveal()
	for _, form := range []string{b64([]byte(user + ":" + word)), b64([]byte("\x00" + user + "\x00" + word)), b64([]byte(word)), url.QueryEscape(word), url.PathEscape(word), word} {
		if word != "" {
			text = strings.ReplaceAll(text, form, s.String())
		}
	}
	return text
}

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

// Hide returns a copy of a struct that can be shown. It replaces the fields with the tag secret:"yes": in a URL the
// passwords, any other value by ***.
func Hide[T any](v T) T {
	hide(reflect.ValueOf(&v).Elem())
	return v
}

// Show writes a value without methods as fmt would. A type's Format calls it with the result of Hide.
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

// HideURL returns a URL without the passwords in its user and its parameters. It returns *** for a text that is not a
// URL.
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
	u.Fragment, u.RawFragment = "", "" // it can be the rest of a password with an unescaped #
	return u.Redacted()
}

// harmless are the parameters of a URL that are no secrets.
var harmless = []string{
	"sslmode", "sslrootcert", "sslcert", "sslkey", "sslnegotiation", "channel_binding", "require_auth", "host", "hostaddr", "port", "user", "dbname",
	"passfile", "password_file", "service", "servicefile", "target_session_attrs", "load_balance_hosts", "connect_timeout", "application_name", "starttls",
}

// Unshown is embedded in types with secrets in unexported fields: fmt does not call Format of such fields, and would
// write them.
type Unshown struct{}

// Format writes nothing of the value that embeds Unshown.
func (Unshown) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, "(not shown: it has secrets)") }

// Scrub returns the text of another program without the word, in case the text repeats it: plain, in base64, or escaped
// as in a URL.
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

package config

import (
	"strings"
	"testing"
)

// TestURLThatCannotBeReadIsNamed says what is wrong with a URL, and never the URL.
func TestURLThatCannotBeReadIsNamed(t *testing.T) {
	for url, says := range map[string]string{
		"jdbc:postgresql://host/db?user=a&password=s3cret":             "source.url: a JDBC URL: take jdbc: away",
		"postgres://u:s3cret@host/db?sslrootcert=/no/such/file":        "source.url: the file of the parameter sslrootcert cannot be read",
		"postgres://u:s3cret@host/db?sslcert=/no/cert&sslkey=/no/such": "source.url: the file of the parameter sslcert cannot be read",
		"postgres://u:s3cret@host/db?pool_max_conns=3":                 `source.url: PostgreSQL does not know the parameter "pool_max_conns"`,
		"://": "source.url: not a PostgreSQL URL",
	} {
		if _, err := ParsePostgresURL("source.url", url); err == nil || !strings.Contains(err.Error(), says) || strings.Contains(err.Error(), "s3cret") {
			t.Errorf("%s: %v, want %q", url, err, says)
		}
	}
}

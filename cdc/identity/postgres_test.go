package identity

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/rs/zerolog"

	"github.com/walpost/walpost/cdc/cdctest"
)

// TestURLThatCannotBeReadIsNamed: the error has the mistake in a URL, and never the URL.
func TestURLThatCannotBeReadIsNamed(t *testing.T) {
	for url, says := range map[string]string{
		"jdbc:postgresql://host/db?user=a&password=s3cret":                 "source.url: a JDBC URL: take jdbc: away",
		"postgres://u:s3cret@host/db?sslmode=require&pool_max_conns=3":     `source.url: PostgreSQL does not know the parameter "pool_max_conns", it is for pgx's pool`,
		"postgres://u:s3cret@host/db?sslmode=require&replication=database": `source.url: PostgreSQL does not know the parameter "replication"`,
		"postgres://u:s3cret@host:x/db?sslmode=require":                    "source.url: not a PostgreSQL URL",
		"postgres://u:s3cret@host/db?password_command=a b":                 "there is a space in it: write it as %20",
		"://":                          "source.url: not a PostgreSQL URL",
		"host=h password=s3cret port=": "source.url: the connection to h would be encrypted or not",
	} {
		if err := NewPostgres("source.url", url, zerolog.Nop()).Check(); err == nil || !strings.Contains(err.Error(), says) || strings.Contains(err.Error(), "s3cret") {
			t.Errorf("%s: %v, want %q", url, err, says)
		}
	}
}

// TestEnvironmentCounts: libpq's variables set the parameters that the URL does not set.
func TestEnvironmentCounts(t *testing.T) {
	folder := t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(folder, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	ours := cdctest.NewAuthority(t, "ours", time.Time{})
	for _, name := range []string{"PGHOST", "PGPORT", "PGUSER", "PGDATABASE", "PGPASSWORD", "PGPASSFILE", "PGSERVICE", "PGSERVICEFILE", "PGSSLMODE", "PGSSLROOTCERT", "PGSSLCERT", "PGSSLKEY"} {
		t.Setenv(name, "")
	}
	t.Setenv("HOME", folder)
	for _, c := range []struct {
		url  string
		env  map[string]string
		says string // the error of Check, or the kind of connection
	}{
		{"postgres://u@db.example/d", nil, "the connection to db.example would be encrypted or not"},
		{"postgres://u@db.example/d", map[string]string{"PGSSLMODE": "disable"}, "u@db.example in clear"},
		{"postgres://u@db.example/d?sslmode=verify-full", map[string]string{"PGSSLMODE": "prefer"}, "u@db.example over TLS for db.example"},
		{"postgres://u@db.example/d?sslmode=require", map[string]string{"PGSSLROOTCERT": ours.File}, "u@db.example over TLS, whose authority is checked"},
		{"postgres://u@db.example/d?sslmode=require", map[string]string{"PGSSLROOTCERT": "/no/such"}, "sslrootcert: read the file: open /no/such"},
		{"postgres://u@db.example/d?sslmode=disable", map[string]string{"PGSSLROOTCERT": "/no/such"}, "u@db.example in clear"},
		{"postgres://u@db.example/d?sslmode=disable", map[string]string{"PGPASSWORD": "p"}, "u:p@db.example in clear"},
		{"postgres://u@db.example/d?sslmode=disable&password_file=/f", map[string]string{"PGPASSWORD": "p"}, "the password and password_file are both there"},
		{"postgres://u@db.example/d?sslmode=disable", map[string]string{"PGPASSFILE": write("pass", "db.example:5432:d:u:p")}, "u:p@db.example in clear"},
		{"postgres://u@db.example/d?sslmode=disable", map[string]string{"PGPASSFILE": "/no/such"}, "passfile: read the file: stat /no/such"},
		{"dbname=d", map[string]string{"PGSERVICE": "s", "PGSERVICEFILE": write("services", "[s]\nhost=db.example\nuser=v\nsslmode=disable\npassword_file="+write("word", "w"))}, "v:w@db.example in clear"},
		{"dbname=d", map[string]string{"PGSERVICE": "t", "PGSERVICEFILE": filepath.Join(folder, "services")}, `service "t" is not in the file of services`},
		{"dbname=d", map[string]string{"PGHOST": "db.example", "PGUSER": "w"}, "the connection to db.example would be encrypted or not"},
		{"", map[string]string{"PGHOST": "/tmp", "PGUSER": "w"}, "w@/tmp in clear"},
		{"postgres://u:a@SECRET/rest@db.example/d?sslmode=disable", nil, "the host has a character that no name of a host has: write the signs of user and password as in a web address"},
		{"postgres://u:a%zz@db.example/d?sslmode=disable", nil, "in user and password write % as %25, @ as %40"},
		{"postgres://u@db.example/d?sslmode=disable&sslcrl=/f", nil, `PostgreSQL does not know the parameter "sslcrl", it is for libpq: remove it from the URL`},
		{"host=db.example user=u sslmode=disable gssencmode=disable", nil, `PostgreSQL does not know the parameter "gssencmode", it is for libpq`},
		{"postgres://u@localhost/d", nil, "u@localhost over TLS or in clear"},
		{"postgres://u@[::1]/d?", nil, "u@::1 over TLS or in clear"},
	} {
		for name, value := range c.env {
			t.Setenv(name, value)
		}
		who := NewPostgres("source.url", c.url, zerolog.Nop())
		cfg, err := who.Config(t.Context())
		got := fmt.Sprint(err)
		if err == nil {
			got = described(&cfg.Config)
		}
		if !strings.Contains(got, c.says) || err == nil && got != c.says {
			t.Errorf("%s with %v: %s, want %s", c.url, c.env, got, c.says)
		}
		if checked := who.Check(); fmt.Sprint(checked) != fmt.Sprint(err) {
			t.Errorf("%s with %v: the check says %v", c.url, c.env, checked)
		}
		for name := range c.env {
			t.Setenv(name, "")
		}
	}
}

func described(cfg *pgconn.Config) string {
	who := cfg.User
	if cfg.Password != "" {
		who += ":" + cfg.Password
	}
	who += "@" + cfg.Host
	switch t := cfg.TLSConfig; {
	case t == nil:
		return who + " in clear"
	case len(cfg.Fallbacks) > 0 && cfg.Fallbacks[0].TLSConfig == nil:
		return who + " over TLS or in clear"
	case !t.InsecureSkipVerify:
		return who + " over TLS for " + t.ServerName
	case t.VerifyConnection != nil:
		return who + " over TLS, whose authority is checked"
	}
	return who + " over TLS"
}

// TestRolePassword: a token is never set as a role's password.
func TestRolePassword(t *testing.T) {
	write := func(text string) string {
		path := filepath.Join(t.TempDir(), "word")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	const base = "postgres://u@localhost/d?sslmode=disable"
	for url, want := range map[string]string{
		base: "/",
		"postgres://u:p@localhost/d?sslmode=disable":                                   "p/",
		base + "&password_file=" + write("file"):                                       "file/",
		base + "&passfile=" + write("*:*:*:*:pass"):                                    "pass/",
		base + "&password_command=echo%20word":                                         "/password_command",
		base + "&password_file=" + write(strings.Repeat("t", longestPassword+1)):       "/password_file",
		base + "&passfile=" + write("*:*:*:*:"+strings.Repeat("t", 2*longestPassword)): "/password",
	} {
		password, token, err := NewPostgres("source.url", url, zerolog.Nop()).RolePassword(t.Context())
		if got := password + "/" + token; got != want || err != nil {
			t.Errorf("%s: %s, %v, want %s", url, got, err, want)
		}
	}
}

// TestPoolAsksAgain: a pool accepts pgx's parameters, and each of its connections uses the present contents of the
// files.
func TestPoolAsksAgain(t *testing.T) {
	word := filepath.Join(t.TempDir(), "word")
	write := func(text string) {
		if err := os.WriteFile(word, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("first")
	cfg, err := NewPostgres("--database-url", "postgres://u@localhost/d?pool_max_conns=3&password_file="+word, zerolog.Nop()).Pool(t.Context())
	if err != nil || cfg.MaxConns != 3 || cfg.ConnConfig.RuntimeParams["password_file"] != "" {
		t.Fatal(cfg, err)
	}
	write("second")
	next := cfg.ConnConfig.Copy()
	if err := cfg.BeforeConnect(t.Context(), next); err != nil || next.Password != "second" {
		t.Errorf("the password is %q, %v", next.Password, err)
	}
}

// TestRefusedTokens has the errors, in their original words, of servers that tests cannot start.
func TestRefusedTokens(t *testing.T) {
	for from, says := range map[string]string{
		"password_command": "the password or token of password_command is wrong or has expired, as a token does after some minutes: password_command is read again at each attempt",
		"":                 "wants a token: if the password is a token, set password_command or password_file",
	} {
		url := "postgres://u@db.example/d?sslmode=require"
		cfg, err := pgconn.ParseConfig(url)
		if err != nil {
			t.Fatal(err)
		}
		if from != "" {
			url += "&" + from + "=x"
		}
		rds := &pgconn.PgError{Code: "28000", Routine: "auth_failed", Message: `PAM authentication failed for user "u"`}
		if got := NewPostgres("source.url", url, zerolog.Nop()).Trouble(cfg, "db.example:5432", rds); !strings.Contains(got, says) {
			t.Errorf("%q: %s", from, got)
		}
	}
}

// TestCertificateInUse: the log says which certificate each connection shows, when it is another one or its end has
// come near. One that cannot be used changes nothing, and one that is not named any more is forgotten.
func TestCertificateInUse(t *testing.T) {
	ours := cdctest.NewAuthority(t, "ours", time.Time{})
	month, days := time.Now().Add(30*24*time.Hour).Truncate(time.Second), time.Now().Add(49*time.Hour).Truncate(time.Second)
	pair := ours.Issue(t, cdctest.Certificate{Name: "first", Until: month})
	services := filepath.Join(t.TempDir(), "services")
	put := func(path, text string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	named := "[shop]\nsslcert=" + pair.CertFile + "\nsslkey=" + pair.KeyFile + "\n"
	put(services, named)
	var log strings.Builder
	who := NewPostgres("source.url", "postgres://u@db.example/d?sslmode=verify-full&service=shop&servicefile="+services, zerolog.New(&log))
	renew := func(name string, until time.Time) func() {
		return func() { ours.Issue(t, cdctest.Certificate{Name: name, Until: until}).Replace(t, pair) }
	}
	for _, c := range []struct {
		name string
		does func()
		says string // the one line of two connections; empty: none
		ends time.Time
	}{
		{"at the start", func() {}, `{"level":"info","key":"source.url: sslcert","expires":"` + month.UTC().Format(time.RFC3339) + `","message":"the certificate CN=first is used"}`, month},
		{"another one that ends with it", renew("second", month), `"the certificate CN=second is used"`, month},
		{"one that ends soon", renew("third", days), `{"level":"warn","key":"source.url: sslcert","expires":"` + days.UTC().Format(time.RFC3339) + `","message":"the certificate CN=third expires in 48h0m0s: renew it"}`, days},
		{"one that is none", func() { put(pair.CertFile, "nonsense") }, "cannot be read again: the last good one is used", days},
		{"a renewed one", renew("fourth", month), `"the certificate CN=fourth is used"`, month},
		{"none any more", func() { put(services, "[shop]\n") }, "", time.Time{}},
		{"the same again", func() { put(services, named) }, `"the certificate CN=fourth is used"`, month},
	} {
		c.does()
		log.Reset()
		for range 2 {
			if _, err := who.Config(t.Context()); err != nil {
				t.Fatalf("%s: %v", c.name, err)
			}
		}
		lines := strings.ReplaceAll(log.String(), `{"level":"info","key":"source.url: sslcert and sslkey","message":"is good again, and used"}`+"\n", "")
		if !strings.Contains(lines, c.says) || strings.Count(lines, "\n") != min(1, len(c.says)) {
			t.Errorf("%s: the log has\n%swant %s", c.name, lines, c.says)
		}
		if ends := who.Certificates()["source.url: sslcert"]; !ends.Equal(c.ends) {
			t.Errorf("%s: it ends at %v, want %v", c.name, ends, c.ends)
		}
	}
}

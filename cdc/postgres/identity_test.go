package postgres

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/rs/zerolog"

	"github.com/walpost/walpost/cdc/cdctest"
	"github.com/walpost/walpost/cdc/config"
	"github.com/walpost/walpost/cdc/devenv"
	"github.com/walpost/walpost/cdc/identity"
)

// certified is a server that takes TLS, with passwords and clients' certificates.
type certified struct {
	*testing.T
	server  *devenv.Postgres
	ours    *cdctest.Authority // issued the server's certificate, and clients'
	its     cdctest.Pair
	folder  string
	address string
	admin   *pgx.Conn
}

// rules are the pg_hba.conf: relay may connect over TLS with a password, mutual also with a certificate, sure with a
// certificate alone, plain without TLS.
const rules = `host all postgres 127.0.0.1/32 trust
hostssl all relay 127.0.0.1/32 scram-sha-256
hostssl all mutual 127.0.0.1/32 scram-sha-256 clientcert=verify-full
hostssl all sure 127.0.0.1/32 cert
hostnossl all plain 127.0.0.1/32 scram-sha-256
`

func newCertified(t *testing.T) *certified {
	t.Helper()
	c := &certified{T: t, ours: cdctest.NewAuthority(t, "ours", time.Time{}), folder: t.TempDir()}
	c.its = c.ours.Issue(t, cdctest.Certificate{Name: "postgres", Hosts: []string{"127.0.0.1", "db.test"}})
	hba := filepath.Join(filepath.Dir(c.its.CertFile), "pg_hba.conf")
	if err := os.WriteFile(hba, []byte(rules), 0o644); err != nil {
		t.Fatal(err)
	}
	c.server = cdctest.OwnPostgres(t, devenv.PostgresConfig{Settings: map[string]string{
		"ssl": "on", "ssl_cert_file": c.its.CertFile, "ssl_key_file": c.its.KeyFile, "ssl_ca_file": c.ours.File, "hba_file": hba,
	}})
	var err error
	if c.admin, err = pgx.Connect(t.Context(), c.server.URL("postgres")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.admin.Close(context.Background()) })
	for _, role := range []string{"relay", "mutual", "sure", "plain"} {
		if _, err := c.admin.Exec(t.Context(), "CREATE ROLE "+role+" LOGIN REPLICATION PASSWORD 'secret'"); err != nil {
			t.Fatal(err)
		}
	}
	u, err := url.Parse(c.server.URL("postgres"))
	if err != nil {
		t.Fatal(err)
	}
	c.address = u.Host
	return c
}

// url returns a URL for the role over TLS, with its password; more is parameters, name=value.
func (c *certified) url(role string, more ...string) string {
	q := url.Values{"sslmode": {"verify-full"}, "sslrootcert": {c.ours.File}}
	u := url.URL{Scheme: "postgres", User: url.UserPassword(role, "secret"), Host: c.address, Path: "/postgres"}
	for _, m := range more {
		name, value, _ := strings.Cut(m, "=")
		switch {
		case name == "word" && value == "":
			u.User = url.User(role)
		case name == "word":
			u.User = url.UserPassword(role, value)
		case name == "address":
			u.Host = value
		case value == "":
			q.Del(name)
		default:
			q.Set(name, value)
		}
	}
	u.RawQuery = strings.ReplaceAll(q.Encode(), "+", "%20")
	return u.String()
}

// file writes a file that only its user may read.
func (c *certified) file(name, text string, mode ...os.FileMode) string {
	c.Helper()
	path := filepath.Join(c.folder, name)
	err := os.WriteFile(path, []byte(text), 0o600)
	if err == nil {
		err = os.Chmod(path, append(mode, 0o600)[0])
	}
	if err != nil {
		c.Fatal(err)
	}
	return path
}

// try connects over SQL and for replication, and returns both errors.
func (c *certified) try(who *identity.Postgres) error {
	l := login{Postgres: who, application: "test"}
	conn, err := l.open(c.Context())
	if err == nil {
		_ = conn.Close(c.Context())
	}
	pg, again := l.replicate(c.Context())
	if again == nil {
		_ = pg.Close(c.Context())
	}
	return errors.Join(err, again)
}

// issue returns sslcert and sslkey of a client.
func (c *certified) issue(by *cdctest.Authority, name string, until time.Time) []string {
	p := by.Issue(c.T, cdctest.Certificate{Name: name, Until: until})
	return []string{"sslcert=" + p.CertFile, "sslkey=" + p.KeyFile}
}

func with(a []string, b ...string) []string { return append(append([]string{}, a...), b...) }

// TestIdentity: a client with a valid identity connects, with every kind of URL; every other client gets an error
// that says what to do.
func TestIdentity(t *testing.T) {
	t.Parallel()
	c := newCertified(t)
	theirs := cdctest.NewAuthority(t, "theirs", time.Time{})
	past := time.Now().Add(-time.Hour)
	mutual, other := c.issue(c.ours, "mutual", time.Time{}), c.issue(c.ours, "other", time.Time{})
	stranger, ended := c.issue(theirs, "mutual", time.Time{}), c.issue(c.ours, "mutual", past)
	_, certFile, _ := strings.Cut(mutual[0], "=")
	_, keyFile, _ := strings.Cut(mutual[1], "=")
	read := func(path string) string {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	key, cert := read(keyFile), read(certFile)
	block, _ := pem.Decode([]byte(key))
	locked, err := x509.EncryptPEMBlock(rand.Reader, "EC PRIVATE KEY", ecKey(t, block.Bytes), []byte("open"), x509.PEMCipherAES256) //lint:ignore SA1019 libpq and pgx take such keys
	if err != nil {
		t.Fatal(err)
	}
	encrypted := c.file("encrypted.key", string(pem.EncodeToMemory(locked)))
	almost := "x0" // a wrong password that the padding of the encrypted key does not betray
	for n := 1; ; n++ {
		_, err := x509.DecryptPEMBlock(locked, []byte(almost)) //lint:ignore SA1019 as above
		if err == nil {
			break
		}
		almost = fmt.Sprint("x", n)
	}
	pkcs8 := c.file("pkcs8.key", string(pem.EncodeToMemory(&pem.Block{Type: "ENCRYPTED PRIVATE KEY", Bytes: []byte{1}})))
	host, port, _ := net.SplitHostPort(c.address)
	c.file("services", fmt.Sprintf("[ours]\nhost=%s\nport=%s\nuser=relay\npassword=secret\ndbname=postgres\nsslmode=verify-full\nsslrootcert=%s\n[open]\nhost=db.example\nuser=u\ndbname=d\nsslmode=prefer\n", host, port, c.ours.File))
	services := filepath.Join(c.folder, "services")
	word := c.file("word", "secret\n")
	passfile := c.file("passfile", "other:*:*:*:wrong\n"+host+":"+port+":*:relay:secret\n")
	command := c.file("command", "#!/bin/sh\necho secret\n", 0o700)
	chatter := c.file("chatter", "#!/bin/sh\necho t0p-secret >&2\necho s3cret\nexit 3\n", 0o700)
	mute := c.file("mute", "#!/bin/sh\n", 0o700)
	keyword := func(more string) string {
		return fmt.Sprintf("host=%s port=%s user=relay dbname=postgres sslmode=verify-full sslrootcert='%s' %s", host, port, c.ours.File, more)
	}
	hangsUp := serving(t, func(conn net.Conn) { _, _ = conn.Read(make([]byte, 8)) })
	tlsOnly := tlsPort(t, c.ours)

	for name, text := range map[string]string{
		"verify-full":                    c.url("relay"),
		"verify-ca":                      c.url("relay", "sslmode=verify-ca"),
		"require with an authority":      c.url("relay", "sslmode=require"),
		"require":                        c.url("relay", "sslmode=require", "sslrootcert="),
		"keywords":                       keyword("password=secret"),
		"a file":                         c.url("relay", "word=", "password_file="+word),
		"a file, in keywords":            keyword("password_file = '" + word + "'"),
		"a command":                      c.url("relay", "word=", "password_command="+command+" a b"),
		"a command, in keywords":         keyword(`password_command='` + command + ` a\ b'`),
		"a passfile":                     c.url("relay", "word=", "passfile="+passfile),
		"a service":                      "postgres:///?service=ours&servicefile=" + services,
		"a certificate and a password":   c.url("mutual", mutual...),
		"a certificate alone":            c.url("sure", with(c.issue(c.ours, "sure", time.Time{}), "word=")...),
		"an encrypted key":               c.url("mutual", "sslcert="+certFile, "sslkey="+encrypted, "sslpassword=open"),
		"a certificate that nobody asks": c.url("relay", other...),
		"without TLS":                    c.url("plain", "sslmode=disable"),
		"either way, on this machine":    c.url("relay", "sslmode=", "sslrootcert="),
	} {
		who := identity.NewPostgres(sourceURL, text, zerolog.Nop())
		if err := c.try(who); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if err := who.Check(); err != nil {
			t.Errorf("%s: the check says: %v", name, err)
		}
	}

	for name, b := range map[string]struct {
		url   string
		says  string
		start bool // the error comes at the start already
	}{
		"no authority's file":        {c.url("relay", "sslrootcert=/no/such"), "sslrootcert: read the file: open /no/such: no such file or directory", true},
		"an unreadable one":          {c.url("relay", "sslrootcert="+c.folder), "sslrootcert: read the file: read " + c.folder + ": is a directory", true},
		"no certificate in it":       {c.url("relay", "sslrootcert="+keyFile), "sslrootcert: the file " + keyFile + " holds no certificate: write PEM there", true},
		"a damaged one in it":        {c.url("relay", "sslrootcert="+c.file("damaged", string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: []byte("x")})))), "sslrootcert: certificate 1 in the file", true},
		"an authority that ended":    {c.url("relay", "sslrootcert="+cdctest.NewAuthority(t, "old", past).File), "sslrootcert: the authority CN=old in the file", false},
		"no client's certificate":    {c.url("mutual", "sslcert=/no/such", "sslkey="+keyFile), "sslcert: read the file: open /no/such", true},
		"a damaged certificate":      {c.url("mutual", "sslcert="+keyFile, "sslkey="+keyFile), "sslcert: the file " + keyFile + " holds no certificate", true},
		"no key":                     {c.url("mutual", "sslcert="+certFile, "sslkey=/no/such"), "sslkey: read the file: stat /no/such", true},
		"no key in it":               {c.url("mutual", "sslcert="+certFile, "sslkey="+word), "sslkey: the file " + word + " holds no key", true},
		"a certificate without key":  {c.url("mutual", "sslcert="+certFile), "sslcert is there without sslkey", true},
		"a key without certificate":  {c.url("mutual", "sslkey="+keyFile), "sslkey is there without sslcert", true},
		"another one's key":          {c.url("mutual", "sslcert="+certFile, other[1]), "does not fit the certificate in", true},
		"a locked key":               {c.url("mutual", "sslcert="+certFile, "sslkey="+encrypted), "is encrypted: name its password in sslpassword", true},
		"the wrong key to it":        {c.url("mutual", "sslcert="+certFile, "sslkey="+encrypted, "sslpassword=x"), "sslpassword does not open the key in", true},
		"a wrong key, by chance":     {c.url("mutual", "sslcert="+certFile, "sslkey="+encrypted, "sslpassword="+almost), "sslpassword does not open the key in", true},
		"a key locked another way":   {c.url("mutual", "sslcert="+certFile, "sslkey="+pkcs8), "is encrypted as PKCS #8", true},
		"a key that all may read":    {c.url("mutual", "sslcert="+certFile, "sslkey="+c.file("open.key", key, 0o644)), "every user of this machine may read", true},
		"a certificate that ended":   {c.url("mutual", ended...), "sslcert: the client certificate CN=mutual has expired at", false},
		"no certificate given":       {c.url("mutual"), "pg_hba.conf wants a client's certificate (clientcert): name sslcert and sslkey", false},
		"another's certificate":      {c.url("mutual", other...), `the certificate of sslcert is for "other" and the role is "mutual"`, false},
		"another's, without word":    {c.url("sure", with(other, "word=")...), `the certificate of sslcert is for "other" and the role is "sure"`, false},
		"a stranger's certificate":   {c.url("mutual", stranger...), "the server takes no certificate of CN=theirs", false},
		"another name":               {c.url("relay", "address="+strings.Replace(c.address, "127.0.0.1", "localhost", 1)), "has a certificate for db.test or 127.0.0.1, and not for localhost: call it by one of its names", false},
		"another authority":          {c.url("relay", "sslrootcert="+theirs.File), "has a certificate (made by CN=ours), and no authority in the file " + theirs.File + " has made it", false},
		"another, verify-ca":         {c.url("relay", "sslmode=verify-ca", "sslrootcert="+theirs.File), "and no authority in the file " + theirs.File + " has made it", false},
		"another, require":           {c.url("relay", "sslmode=require", "sslrootcert="+theirs.File), "and no authority in the file " + theirs.File + " has made it", false},
		"nobody's authority":         {c.url("relay", "sslrootcert="), "has a certificate of an authority that this machine does not know (made by CN=ours): name the file with its certificate in sslrootcert", false},
		"no TLS there":               {strings.Replace(cdctest.Postgres(t).URL("postgres"), "disable", "verify-full", 1), "takes no TLS: switch it on there (ssl = on), or write sslmode=disable", false},
		"TLS alone there":            {c.url("relay", "sslmode=disable"), "pg_hba.conf does not let the role relay in from this host without TLS", false},
		"wrong password":             {c.url("relay", "word=wrong"), "`walpost init` does so (ALTER ROLE", false},
		"a token that ended":         {c.url("relay", "word=", "password_file="+c.file("token", "old")), "the password or token of password_file is wrong or has expired, as a token does after some minutes: password_file is read again at each attempt", false},
		"no word in the file":        {c.url("relay", "word=", "password_file="+c.file("empty", "\n")), "is empty: write the password or the token there", true},
		"two words in it":            {c.url("relay", "word=", "password_file="+c.file("two", "a\nb\n")), "holds more than one line", true},
		"no such file":               {c.url("relay", "word=", "password_file=/no/such"), "password_file: read the file: stat /no/such", true},
		"a command that fails":       {c.url("relay", "word=", "password_command="+chatter), "exit status 3: run it by hand", false},
		"a command that says naught": {c.url("relay", "word=", "password_command="+mute), "mute printed nothing: run it by hand", false},
		"no such command":            {c.url("relay", "word=", "password_command=/no/such"), "password_command: the command /no/such: fork/exec /no/such: no such file", false},
		"two ways to a password":     {c.url("relay", "password_file="+word), "the password and password_file are both there: keep one", true},
		"file and command":           {c.url("relay", "word=", "password_file="+word, "password_command=x"), "password_file and password_command are both there: keep one", true},
		"a word that is empty":       {keyword("password_file=''"), "password_file is empty", true},
		"no such service":            {"postgres:///?service=theirs&servicefile=" + services, `service "theirs" is not in the file of services`, true},
		"no file of services":        {"postgres:///?service=ours&servicefile=/no/such", `service "ours": the file of services cannot be read`, true},
		"no such passfile":           {c.url("relay", "word=", "passfile=/no/such"), "passfile: read the file: stat /no/such", true},
		"a passfile for all":         {c.url("relay", "word=", "passfile="+c.file("open.pass", "x", 0o644)), "passfile: every user of this machine may read", true},
		"no sslmode":                 {"postgres://u@db.example/d", "write sslmode=verify-full and sslrootcert=…", true},
		"prefer":                     {"postgres://u@127.0.0.1,db.example/d?sslmode=prefer", "the connection to db.example would be encrypted or not", true},
		"allow":                      {"host=db.example user=u dbname=d sslmode=allow", "or sslmode=disable, which sends password and rows in clear", true},
		"prefer, by a service":       {"postgres:///?service=open&servicefile=" + services, "the connection to db.example would be encrypted or not", true},
		"an sslmode of nobody's":     {"postgres://u@db.example/d?sslmode=on", "PostgreSQL does not know this sslmode", true},
		"Kafka's port":               {c.url("relay", "connect_timeout=1", "address="+cdctest.Kafka(t)[0]), "has not answered within 1s: check whether it is PostgreSQL and not Kafka", false},
		"Kafka's port, clear":        {c.url("relay", "connect_timeout=1", "sslmode=disable", "address="+cdctest.Kafka(t)[0]), "has not answered within 1s: check whether it is PostgreSQL and not Kafka", false},
		"who hangs up":               {c.url("relay", "address="+hangsUp), "closes the connection before it answers", false},
		"who hangs up, in clear":     {c.url("relay", "sslmode=disable", "address="+hangsUp), "closes the connection before it answers", false},
		"a port for TLS alone":       {c.url("relay", "address="+tlsOnly), "closes the connection before it answers", false},
		"the same, in clear":         {c.url("relay", "sslmode=disable", "address="+tlsOnly), "if the port accepts only TLS, write sslmode=verify-full", false},
	} {
		who := identity.NewPostgres(sourceURL, b.url, zerolog.Nop())
		err := c.try(who)
		if err == nil || !strings.HasPrefix(err.Error(), sourceURL+": ") || strings.Count(err.Error(), b.says) != 2 {
			t.Errorf("%s: %v\nwant it to say %q", name, err, b.says)
		}
		for _, secret := range []string{"secret@", ":secret", "s3cret", "t0p-secret"} {
			if strings.Contains(fmt.Sprint(err), secret) {
				t.Errorf("%s: %v: it has a secret in it", name, err)
			}
		}
		if said := who.Check(); (said != nil) != b.start {
			t.Errorf("%s: the check at the start says %v", name, said)
		}
	}
	c.rotates(cert, key)
}

// rotates gives one URL other files, wrong ones and right ones: the last good one stays in use, and the log reports
// that once.
func (c *certified) rotates(cert, key string) {
	c.Helper()
	var log bytes.Buffer
	pair := cdctest.Pair{CertFile: c.file("own.crt", cert), KeyFile: c.file("own.key", key)}
	word := c.file("own.word", "secret")
	who := identity.NewPostgres(sourceURL, c.url("mutual", "word=", "password_file="+word, "sslcert="+pair.CertFile, "sslkey="+pair.KeyFile), zerolog.New(&log))
	says := func(what string, n int) {
		c.Helper()
		if err := c.try(who); err != nil {
			c.Errorf("%s: %v", what, err)
		}
		if got := strings.Count(log.String(), "cannot be read again: the last good one is used"); got != n {
			c.Errorf("%s: the log has %d lines, want %d:\n%s", what, got, n, log.String())
		}
	}
	says("all is right", 0)
	c.file("own.crt", "garbage")
	says("a certificate that is none", 1)
	next := c.ours.Issue(c.T, cdctest.Certificate{Name: "mutual"})
	if err := os.Rename(next.CertFile, pair.CertFile); err != nil {
		c.Fatal(err)
	}
	says("a certificate whose key has not come yet", 2)
	if err := os.Rename(next.KeyFile, pair.KeyFile); err != nil {
		c.Fatal(err)
	}
	says("and its key", 2)
	if !strings.Contains(log.String(), `"key":"source.url: sslcert and sslkey","message":"is good again, and used"`) {
		c.Errorf("the log does not say that it is good again:\n%s", log.String())
	}
	c.file("own.word", "")
	says("an empty word", 3)
	if _, err := c.admin.Exec(c.Context(), "ALTER ROLE mutual PASSWORD 'next'"); err != nil {
		c.Fatal(err)
	}
	if err := c.try(who); err == nil || !strings.Contains(err.Error(), "the password or token of password_file is wrong or has expired") {
		c.Errorf("the old word after a new password: %v", err)
	}
	c.file("own.word", "next")
	says("the new word", 3)

	// The client's certificate expires, another one is revoked, and the server's expires.
	c.ours.Issue(c.T, cdctest.Certificate{Name: "mutual", Until: time.Now().Add(3 * time.Second)}).Replace(c.T, pair)
	says("a certificate that ends soon", 3)
	reload := func() {
		c.Helper()
		if _, err := c.admin.Exec(c.Context(), "SELECT pg_reload_conf()"); err != nil {
			c.Fatal(err)
		}
	}
	fails := func(what, want string) {
		c.Helper()
		cdctest.Eventually(c.T, 10*time.Second, func() error {
			conn, err := login{Postgres: who}.open(c.Context())
			if err == nil {
				_ = conn.Close(c.Context())
			}
			if err == nil || !strings.Contains(err.Error(), want) {
				return fmt.Errorf("%s: %w", what, err)
			}
			return nil
		})
	}
	fails("a certificate that has expired", "sslcert: the client certificate CN=mutual has expired at ")
	c.ours.Issue(c.T, cdctest.Certificate{Name: "mutual"}).Replace(c.T, pair)
	says("a renewed certificate", 3)
	if _, err := c.admin.Exec(c.Context(), "ALTER SYSTEM SET ssl_crl_file = '"+c.ours.Revoke(c.T, pair)+"'"); err != nil {
		c.Fatal(err)
	}
	reload()
	fails("a revoked certificate", "refuses the certificate of sslcert, CN=mutual by CN=ours (revoked certificate), which expires at ")
	c.ours.Issue(c.T, cdctest.Certificate{Name: "postgres", Hosts: []string{"127.0.0.1"}, Until: time.Now().Add(-time.Minute)}).Replace(c.T, c.its)
	reload()
	fails("a server's certificate that ended", "PostgreSQL at "+c.address+" has a certificate that is out of its time (valid from ")

	// A command that hangs is stopped.
	ctx, cancel := context.WithTimeout(c.Context(), 100*time.Millisecond)
	defer cancel()
	hangs := identity.NewPostgres(sourceURL, c.url("relay", "word=", "password_command=sleep 60"), zerolog.Nop())
	if _, err := (login{Postgres: hangs}).open(ctx); err == nil || !strings.Contains(err.Error(), "password_command: the command sleep has printed nothing within") {
		c.Errorf("a command that hangs: %v", err)
	}
}

// TestTokenIsNoPassword: init gives a new role the password of a file, and no password if a command supplies tokens.
func TestTokenIsNoPassword(t *testing.T) {
	t.Parallel()
	admin := cdctest.Database(t)
	u, err := url.Parse(admin)
	if err != nil {
		t.Fatal(err)
	}
	u.User = url.User(cdctest.SlotName(t, "new"))
	word := filepath.Join(t.TempDir(), "word")
	if err := os.WriteFile(word, []byte("secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	for more, want := range map[string][2]string{
		"&password_file=" + word:      {"create it with LOGIN and REPLICATION", " PASSWORD :password"},
		"&password_command=echo%20so": {"without a password: password_command of source.url supplies a token that expires: let the role log in with tokens (GRANT rds_iam TO ", ""},
	} {
		cfg := config.Default().Source
		cfg.URL = u.String() + more
		a, err := NewSource("test", cfg, zerolog.Nop()).Admin(t.Context(), admin)
		if err != nil {
			t.Fatal(err)
		}
		steps, err := a.Plan(t.Context(), PlanOptions{})
		a.Close(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		create := `CREATE ROLE "` + u.User.Username() + `" LOGIN REPLICATION` + want[1]
		if !strings.Contains(steps[0].What, want[0]) || steps[0].SQL[0] != create {
			t.Errorf("%s: %+v, want %q and %s", more, steps[0], want[0], create)
		}
	}
}

// TestSeveralHosts: each host has a certificate for its name, and the second is used if the first is away.
func TestSeveralHosts(t *testing.T) {
	t.Parallel()
	ours := cdctest.NewAuthority(t, "ours", time.Time{})
	address := func(host string) string {
		p := ours.Issue(t, cdctest.Certificate{Name: host, Hosts: []string{host}})
		u, err := url.Parse(cdctest.OwnPostgres(t, devenv.PostgresConfig{Settings: map[string]string{"ssl": "on", "ssl_cert_file": p.CertFile, "ssl_key_file": p.KeyFile}}).URL("postgres"))
		if err != nil {
			t.Fatal(err)
		}
		return net.JoinHostPort(host, u.Port())
	}
	first, second := address("127.0.0.1"), address("localhost")
	for _, hosts := range []string{first + "," + second, second + "," + first, "127.0.0.1:1," + second} {
		who := identity.NewPostgres(sourceURL, "postgres://postgres@"+hosts+"/postgres?sslmode=verify-full&sslrootcert="+ours.File, zerolog.Nop())
		conn, err := login{Postgres: who}.open(t.Context())
		if err != nil {
			t.Errorf("%s: %v", hosts, err)
			continue
		}
		_ = conn.Close(t.Context())
	}
}

// tlsPort returns the address of a listener that speaks TLS from the first byte on.
func tlsPort(t *testing.T, by *cdctest.Authority) string {
	t.Helper()
	its := by.Issue(t, cdctest.Certificate{Name: "other", Hosts: []string{"127.0.0.1"}})
	certificate, err := tls.LoadX509KeyPair(its.CertFile, its.KeyFile)
	if err != nil {
		t.Fatal(err)
	}
	cfg := &tls.Config{Certificates: []tls.Certificate{certificate}}
	return serving(t, func(conn net.Conn) { _ = tls.Server(conn, cfg).Handshake() })
}

// serving returns the address of a listener that calls serve for each connection, and then closes it.
func serving(t *testing.T, serve func(net.Conn)) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			serve(conn)
			_ = conn.Close()
		}
	}()
	t.Cleanup(func() { _ = l.Close(); <-ended })
	return l.Addr().String()
}

// ecKey returns a key in the older form, which may be encrypted as PEM.
func ecKey(t *testing.T, pkcs8 []byte) []byte {
	t.Helper()
	key, err := x509.ParsePKCS8PrivateKey(pkcs8)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalECPrivateKey(key.(*ecdsa.PrivateKey))
	if err != nil {
		t.Fatal(err)
	}
	return der
}

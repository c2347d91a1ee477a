package identity

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgpassfile"
	"github.com/jackc/pgservicefile"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/rs/zerolog"
)

// Postgres holds the URL of a database, or keyword=value, and opens connections to it. The URL may have libpq's
// parameters, and also password_file and password_command. Postgres reads the files and runs the command again for each
// new connection.
type Postgres struct {
	Unshown

	Key string // name of the setting that holds the URL: source.url
	url string

	params   kept[params]
	roots    kept[*x509.CertPool]
	own      kept[*tls.Certificate]
	password kept[string]
	certs    inUse
}

const (
	passwordFile    = "password_file"
	passwordCommand = "password_command"
)

// params has the parameters of a URL, with those from the environment and the service file.
type params struct {
	files  map[string]string // the parameters of files: sslrootcert, sslcert, sslkey, passfile
	pool   *pgxpool.Config   // the other parameters, without certificates
	names  []string          // names of parameters that only pgx knows
	source string            // password_file or password_command, if the password comes from it; empty for the URL and libpq's sources
	from   string            // the file or the command of source
}

// NewPostgres returns a Postgres for the URL that the setting key holds. It reads nothing yet.
func NewPostgres(key, url string, log zerolog.Logger) *Postgres {
	return &Postgres{
		Key: key, url: url,
		params:   kept[params]{key: key, log: log},
		roots:    kept[*x509.CertPool]{key: key + ": sslrootcert", log: log},
		own:      kept[*tls.Certificate]{key: key + ": sslcert and sslkey", log: log, ends: endOf},
		password: kept[string]{key: key + ": password", log: log},
		certs:    inUse{log: log},
	}
}

// Certificates returns the time when the client certificate in use expires, by the name of its key: source.url:
// sslcert.
func (p *Postgres) Certificates() map[string]time.Time { return p.certs.ends() }

// Check returns an error with the mistakes in the URL, and in the files that it names. It runs no command. An expired
// certificate is no error, because a process must start although the new file is written only later.
func (p *Postgres) Check() error {
	_, err := p.read(context.Background(), true, false)
	if errors.As(err, new(*expiredError)) {
		return nil
	}
	return err
}

// Target returns the servers, the database and the role of the URL, without a password from a file or a command, and
// without certificates.
func (p *Postgres) Target() (*pgconn.Config, error) {
	u, err := p.params.of(context.Background(), func(context.Context) (params, error) { return parse(p.url) })
	if err != nil {
		return nil, fmt.Errorf("%s: %w", p.Key, err)
	}
	return u.pool.ConnConfig.Config.Copy(), nil
}

// Config returns the configuration of the next connection. Parameters that only pgx knows are an error.
func (p *Postgres) Config(ctx context.Context) (*pgx.ConnConfig, error) {
	cfg, err := p.read(ctx, true, true)
	if err != nil {
		return nil, err
	}
	return cfg.ConnConfig, nil
}

// Pool returns the configuration of a pool. Each of its connections reads the password and the certificates again.
func (p *Postgres) Pool(ctx context.Context) (*pgxpool.Config, error) {
	cfg, err := p.read(ctx, false, false)
	if err != nil {
		return nil, err
	}
	cfg.BeforeConnect = p.Renew
	return cfg, nil
}

// Renew sets the password and the certificates for the next connection. It is a BeforeConnect of pgx.
func (p *Postgres) Renew(ctx context.Context, cfg *pgx.ConnConfig) error {
	now, err := p.read(ctx, false, true)
	if err != nil {
		return err
	}
	n := now.ConnConfig
	cfg.Host, cfg.Port, cfg.TLSConfig, cfg.Fallbacks, cfg.SSLCertMode, cfg.SSLNegotiation = n.Host, n.Port, n.TLSConfig, n.Fallbacks, n.SSLCertMode, n.SSLNegotiation
	cfg.User, cfg.Password = n.User, n.Password
	return nil
}

// RolePassword returns the password that init can set for the role of the URL. If it must not be set, RolePassword
// returns the source of the password instead: the output of a command is a token that expires soon, and so is a text
// that is too long for a password.
func (p *Postgres) RolePassword(ctx context.Context) (password, token string, err error) {
	target, err := p.Target()
	if err != nil {
		return "", "", err
	}
	u, err := parse(p.url)
	if err != nil {
		return "", "", fmt.Errorf("%s: %w", p.Key, err)
	}
	if u.source == passwordCommand {
		return "", passwordCommand, nil
	}
	word, err := p.password.of(ctx, func(ctx context.Context) (string, error) { return u.password(ctx, target) })
	switch {
	case err != nil:
		return "", "", fmt.Errorf("%s: %w", p.Key, err)
	case len(word) > longestPassword:
		return "", cmp.Or(u.source, "password"), nil
	}
	return word, "", nil
}

// longestPassword is the largest number of bytes of a password that people set. Tokens have more: RDS's about 1,000,
// Azure's about 2,000.
const longestPassword = 256

// PasswordFrom returns password_file or password_command, if the URL has one of them.
func (p *Postgres) PasswordFrom() string {
	u, err := parse(p.url)
	if err != nil {
		return ""
	}
	return u.source
}

// read returns the URL's configuration with the contents of its files. With pure, parameters that only pgx knows are an
// error. With ask, it also reads the password.
func (p *Postgres) read(ctx context.Context, pure, ask bool) (*pgxpool.Config, error) {
	fail := func(err error) (*pgxpool.Config, error) { return nil, fmt.Errorf("%s: %w", p.Key, err) }
	u, err := p.params.of(ctx, func(context.Context) (params, error) { return parse(p.url) })
	if err != nil {
		return fail(err)
	}
	if pure && len(u.names) > 0 {
		whose := cmp.Or(foreign[u.names[0]], "pgx's pool")
		return fail(fmt.Errorf("PostgreSQL does not know the parameter %q, it is for %s: remove it from the URL", u.names[0], whose))
	}
	if host := opportunistic(&u.pool.ConnConfig.Config); host != "" {
		return fail(fmt.Errorf("the connection to %s would be encrypted or not, as the server likes, and would trust any server: write sslmode=verify-full and sslrootcert=…, the file of the authority that signed the server's certificate, or sslmode=disable, which sends password and rows in clear", host))
	}
	cfg := u.pool.Copy()
	if overTLS(&cfg.ConnConfig.Config) {
		roots, err := p.roots.of(ctx, func(context.Context) (*x509.CertPool, error) { return u.readRoots() })
		if err != nil {
			return fail(err)
		}
		own, err := p.own.of(ctx, func(context.Context) (*tls.Certificate, error) {
			own, err := u.readOwn()
			if err == nil {
				p.certs.note(p.Key+": sslcert", leaf(own))
			}
			return own, err
		})
		if err != nil {
			return fail(err)
		}
		certify(&cfg.ConnConfig.Config, roots, own)
	}
	if ask || u.source != passwordCommand {
		target := &cfg.ConnConfig.Config
		target.Password, err = p.password.of(ctx, func(ctx context.Context) (string, error) { return u.password(ctx, target) })
		if err != nil {
			return fail(err)
		}
	}
	return cfg, nil
}

// foreign are parameters that URLs for other programs have. PostgreSQL knows none of them, and one would open another
// kind of connection.
var foreign = map[string]string{
	"default_query_exec_mode":    "pgx",
	"statement_cache_capacity":   "pgx",
	"description_cache_capacity": "pgx",
	"replication":                "walpost, which sets it where it is needed",
}

// libpqs are parameters of libpq that pgx would send to the server, which knows none of them.
var libpqs = []string{
	"sslcrl", "sslcrldir", "sslcompression", "sslkeylogfile", "ssl_min_protocol_version", "ssl_max_protocol_version", "gssencmode", "gsslib", "gssdelegation",
	"hostaddr", "load_balance_hosts", "keepalives", "keepalives_idle", "keepalives_interval", "keepalives_count", "tcp_user_timeout", "requirepeer",
	"scram_client_key", "scram_server_key", "oauth_issuer", "oauth_client_id", "oauth_client_secret", "oauth_scope", "fallback_application_name",
}

// withoutFiles are the parameters whose files pgx would read. We read them instead, to name the fault of a file, and to
// keep the last good one.
var withoutFiles = []string{"sslrootcert", "sslcert", "sslkey", "passfile"}

// parse reads the URL, the environment and the service file. Its errors never hold the URL.
func parse(text string) (params, error) {
	u := params{}
	if strings.HasPrefix(text, "jdbc:") {
		return u, errors.New("a JDBC URL: take jdbc: away, and write user and password before the host (postgres://user@host:5432/database)")
	}
	var err error
	if u.files, err = settings(text); err != nil {
		return u, err
	}
	plain := without(text, slices.DeleteFunc(slices.Clone(withoutFiles), func(name string) bool { return name == "sslrootcert" && u.files[name] == "system" }))
	// ParseConfig of pgconn keeps the pool's parameters in RuntimeParams, so that they can be found there.
	raw, err := pgconn.ParseConfig(plain)
	if err != nil {
		return u, said(plain, err)
	}
	for name := range raw.RuntimeParams {
		if foreign[name] != "" || strings.HasPrefix(name, "pool_") {
			u.names = append(u.names, name)
		}
	}
	if noName(raw) || unescaped(text) {
		return u, errors.New("the host has a character that no name of a host has: write the signs of user and password as in a web address: @ is %40, / is %2F, # is %23")
	}
	for _, name := range libpqs {
		if _, there := raw.RuntimeParams[name]; there {
			return u, fmt.Errorf("PostgreSQL does not know the parameter %q, it is for libpq: remove it from the URL", name)
		}
	}
	slices.Sort(u.names)
	if u.pool, err = pgxpool.ParseConfig(plain); err != nil {
		return u, said(plain, err)
	}
	cfg := &u.pool.ConnConfig.Config
	for _, name := range []string{passwordFile, passwordCommand} {
		word, named := cfg.RuntimeParams[name]
		delete(cfg.RuntimeParams, name)
		switch {
		case !named:
		case word == "":
			return u, fmt.Errorf("%s is empty: name the one that has the password, or take it out", name)
		case u.source != "":
			return u, errors.New("password_file and password_command are both there: keep one")
		case cfg.Password != "":
			return u, fmt.Errorf("the password and %s are both there: keep one (a password may also come from PGPASSWORD or the service file)", name)
		default:
			u.source, u.from = name, word
		}
	}
	return u, nil
}

// said returns pgx's reason why it cannot read a URL, without the URL.
func said(text string, err error) error {
	const form = "postgres://user@host:5432/database?sslmode=verify-full"
	if inner := errors.Unwrap(err); inner != nil && inner.Error() == "sslmode is invalid" {
		return errors.New("PostgreSQL does not know this sslmode: write verify-full, verify-ca, require or disable")
	}
	if isURL(text) && strings.Contains(text, " ") {
		return errors.New("not a PostgreSQL URL: there is a space in it: write it as %20")
	}
	if isURL(text) && strings.Contains(text, "@") {
		return fmt.Errorf("not a PostgreSQL URL (%s): in user and password write %% as %%25, @ as %%40, / as %%2F, # as %%23", form)
	}
	return fmt.Errorf("not a PostgreSQL URL (%s)", form)
}

// noName reports whether a host has characters that no name and no address has. Then it may contain a part of the
// password, and must not be in an error.
func noName(cfg *pgconn.Config) bool {
	return slices.ContainsFunc(all(cfg), func(f *pgconn.FallbackConfig) bool {
		return !strings.HasPrefix(f.Host, "/") && strings.ContainsAny(strings.TrimPrefix(f.Host, "@"), "@'\"\\ \t#?&=*<>{}|^`")
	})
}

// unescaped reports whether a URL has two @ before its parameters: the text between them is a part of a password.
func unescaped(text string) bool {
	before, _, _ := strings.Cut(text, "?")
	return isURL(text) && strings.Count(before, "@") > 1
}

// opportunistic returns a host to which the connection would be with or without TLS, as the server likes; "" if there
// is none, apart from this machine.
func opportunistic(cfg *pgconn.Config) string {
	for _, f := range all(cfg) {
		if !onThisMachine(f.Host) && eitherWay(cfg, f) {
			return f.Host
		}
	}
	return ""
}

// eitherWay reports whether the address is tried both with TLS and without.
func eitherWay(cfg *pgconn.Config, f *pgconn.FallbackConfig) bool {
	return slices.ContainsFunc(all(cfg), func(g *pgconn.FallbackConfig) bool {
		return g.Host == f.Host && g.Port == f.Port && (g.TLSConfig == nil) != (f.TLSConfig == nil)
	})
}

func onThisMachine(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || isSocket(host) || ip != nil && ip.IsLoopback()
}

func isSocket(host string) bool { return strings.HasPrefix(host, "/") || strings.HasPrefix(host, "@") }

// all returns the addresses of a configuration, with TLS or without.
func all(cfg *pgconn.Config) []*pgconn.FallbackConfig {
	return append([]*pgconn.FallbackConfig{{Host: cfg.Host, Port: cfg.Port, TLSConfig: cfg.TLSConfig}}, cfg.Fallbacks...)
}

func overTLS(cfg *pgconn.Config) bool {
	return slices.ContainsFunc(all(cfg), func(f *pgconn.FallbackConfig) bool { return f.TLSConfig != nil })
}

// certify sets the authorities and the client's certificate in each TLS configuration.
func certify(cfg *pgconn.Config, roots *x509.CertPool, own *tls.Certificate) {
	for _, f := range all(cfg) {
		t := f.TLSConfig
		if t == nil {
			continue
		}
		if roots != nil {
			t.RootCAs = roots
			if t.InsecureSkipVerify && !eitherWay(cfg, f) { // verify-ca, and require with authorities, as in libpq
				t.VerifyPeerCertificate = nil
				t.VerifyConnection = func(s tls.ConnectionState) error { return signedBy(roots, s.PeerCertificates) }
			}
		}
		if own != nil {
			t.Certificates = []tls.Certificate{*own}
		}
	}
}

// signedBy returns an error if none of the authorities has signed the first certificate. It does not check the
// certificate's names.
func signedBy(roots *x509.CertPool, chain []*x509.Certificate) error {
	between := x509.NewCertPool()
	for _, c := range chain[1:] {
		between.AddCert(c)
	}
	_, err := chain[0].Verify(x509.VerifyOptions{Roots: roots, Intermediates: between})
	return err
}

// inEnvironment are the variables of libpq for the parameters that settings reads.
var inEnvironment = map[string]string{
	"PGSSLROOTCERT": "sslrootcert", "PGSSLCERT": "sslcert", "PGSSLKEY": "sslkey", "PGSSLPASSWORD": "sslpassword",
	"PGPASSFILE": "passfile", "PGSERVICE": "service", "PGSERVICEFILE": "servicefile",
}

// settings returns the parameters that name files, from the home folder, the environment, the service file and the
// text. A later source wins.
func settings(text string) (map[string]string, error) {
	s := map[string]string{}
	at := func(names ...string) (path string, there bool) {
		home, err := os.UserHomeDir()
		path = filepath.Join(append([]string{home}, names...)...)
		if err == nil {
			_, err = os.Stat(path)
		}
		return path, err == nil
	}
	if cert, there := at(".postgresql", "postgresql.crt"); there {
		if key, there := at(".postgresql", "postgresql.key"); there {
			s["sslcert"], s["sslkey"] = cert, key
		}
	}
	for name, file := range map[string][]string{"sslrootcert": {".postgresql", "root.crt"}, "passfile": {".pgpass"}} {
		if path, there := at(file...); there {
			s[name] = path
		}
	}
	s["servicefile"], _ = at(".pg_service.conf")
	for variable, name := range inEnvironment {
		if v := os.Getenv(variable); v != "" {
			s[name] = v
		}
	}
	own := written(text)
	if name, file := cmp.Or(own["service"], s["service"]), cmp.Or(own["servicefile"], s["servicefile"]); name != "" {
		services, err := pgservicefile.ReadServicefile(file)
		var path *os.PathError
		switch {
		case errors.As(err, &path):
			return nil, fmt.Errorf("service %q: the file of services cannot be read: %w: name it in PGSERVICEFILE", name, err)
		case err != nil:
			return nil, fmt.Errorf("service %q: the file of services %s cannot be understood: %w: a section is [name], and below it stands keyword=value", name, file, err)
		}
		service, err := services.GetService(name)
		if err != nil {
			return nil, fmt.Errorf("service %q is not in the file of services %s: write a section [%[1]s] there, or correct the name (service, PGSERVICE)", name, file)
		}
		maps.Copy(s, service.Settings)
	}
	maps.Copy(s, own)
	return s, nil
}

// parameter matches keyword=value or keyword='value', with a backslash before an escaped character.
var (
	parameter = regexp.MustCompile(`([^\s=]+)\s*=\s*(?:'((?:[^'\\]|\\.)*)'|((?:[^\s\\]|\\.)*))`)
	escaped   = regexp.MustCompile(`\\(.)`)
)

// written returns the parameters in the text itself: a URL's query, or keyword=value.
func written(text string) map[string]string {
	found := map[string]string{}
	if !isURL(text) {
		for _, m := range parameter.FindAllStringSubmatch(text, -1) {
			found[m[1]] = escaped.ReplaceAllString(m[2]+m[3], "$1")
		}
		return found
	}
	for pair := range strings.SplitSeq(query(text), "&") {
		name, value, _ := strings.Cut(pair, "=")
		if v, err := url.PathUnescape(value); err == nil {
			found[name] = strings.TrimSpace(v)
		}
	}
	return found
}

func isURL(text string) bool {
	return strings.HasPrefix(text, "postgres://") || strings.HasPrefix(text, "postgresql://")
}

// query returns the query of a URL, by libpq's rule: a @ before the first slash ends user and password.
func query(text string) string {
	_, rest, _ := strings.Cut(text, "://")
	if i := strings.IndexAny(rest, "@/"); i >= 0 && rest[i] == '@' {
		rest = rest[i+1:]
	}
	_, query, _ := strings.Cut(rest, "?")
	return query
}

// without returns the text with the named parameters appended as empty, because the later one of two with the same name
// counts.
func without(text string, names []string) string {
	if !isURL(text) {
		if strings.HasSuffix(strings.TrimSpace(text), "=") {
			text += "''"
		}
		return text + " " + strings.Join(names, "='' ") + "=''"
	}
	between := "?"
	if query(text) != "" {
		between = "&"
	} else if strings.HasSuffix(text, "?") {
		between = ""
	}
	return text + between + strings.Join(names, "=&") + "="
}

// password returns the password or token for the next login.
func (u params) password(ctx context.Context, target *pgconn.Config) (string, error) {
	var word string
	var err error
	switch u.source {
	case passwordFile:
		word, err = readWord(u.from)
	case passwordCommand:
		word, err = runForWord(ctx, u.from)
	default:
		if target.Password != "" || u.files["passfile"] == "" {
			return target.Password, nil
		}
		return u.fromPassfile(target)
	}
	if err != nil {
		return "", fmt.Errorf("%s: %w", u.source, err)
	}
	return word, nil
}

// readRoots returns the authorities of sslrootcert; nil for the system's.
func (u params) readRoots() (*x509.CertPool, error) {
	path := u.files["sslrootcert"]
	if path == "" || path == "system" {
		return nil, nil
	}
	roots, err := readAuthorities(path)
	return roots, about("sslrootcert", err)
}

// fromPassfile returns the password for the first host; "" if the file has none for it.
func (u params) fromPassfile(target *pgconn.Config) (string, error) {
	path := u.files["passfile"]
	if err := private(path); err != nil {
		return "", fmt.Errorf("passfile: %w", err)
	}
	file, err := pgpassfile.ReadPassfile(path)
	if err != nil {
		return "", fmt.Errorf("passfile: %w", err)
	}
	host := target.Host
	if isSocket(host) {
		host = "localhost" // the file's name for a socket
	}
	return file.FindPassword(host, strconv.Itoa(int(target.Port)), target.Database, target.User), nil
}

package identity

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
)

// Kafka says how a client proves its identity to Kafka, and which servers it trusts. The same struct defines keys of a
// configuration and flags of a command.
type Kafka struct {
	TLS           bool   `yaml:"tls" name:"tls" env:"TLS" help:"connect with TLS"`
	TLSCAFile     string `yaml:"tls_ca_file" name:"tls-ca-file" env:"TLS_CA_FILE" placeholder:"FILE" help:"file with the certificates of the authorities that sign Kafka's certificates (PEM); empty: the system's authorities"`
	TLSCertFile   string `yaml:"tls_cert_file" name:"tls-cert-file" env:"TLS_CERT_FILE" placeholder:"FILE" help:"file with the client certificate, followed by its chain (PEM)"`
	TLSKeyFile    string `yaml:"tls_key_file" name:"tls-key-file" env:"TLS_KEY_FILE" placeholder:"FILE" help:"file with the key of the client certificate (PEM, without a passphrase)"`
	TLSServerName string `yaml:"tls_server_name" name:"tls-server-name" env:"TLS_SERVER_NAME" placeholder:"NAME" help:"name that each broker's certificate must have; empty: the broker's address"`
	SASL          SASL   `yaml:"sasl" embed:"" prefix:"sasl-" envprefix:"SASL_"`
}

// SASL says how a client logs in to Kafka.
type SASL struct {
	Mechanism        Mechanism `yaml:"mechanism" name:"mechanism" env:"MECHANISM" placeholder:"NAME" help:"mechanism of the login: plain, scram-sha-256, scram-sha-512, oauthbearer or aws-msk-iam; empty: no login"`
	Username         string    `yaml:"username" name:"username" env:"USERNAME" placeholder:"NAME" help:"plain, scram: user of the login"`
	Password         Secret    `yaml:"password" secret:"yes" name:"password" env:"PASSWORD" placeholder:"WORD" help:"plain, scram: password of the login; a file is safer"`
	PasswordFile     string    `yaml:"password_file" name:"password-file" env:"PASSWORD_FILE" placeholder:"FILE" help:"file that holds the password, read again at each login"`
	PasswordCommand  string    `yaml:"password_command" name:"password-command" env:"PASSWORD_COMMAND" placeholder:"COMMAND" help:"command that prints the password, run again at each login, without a shell"`
	TokenFile        string    `yaml:"token_file" name:"token-file" env:"TOKEN_FILE" placeholder:"FILE" help:"oauthbearer: file that holds the token, read again at each login"`
	TokenCommand     string    `yaml:"token_command" name:"token-command" env:"TOKEN_COMMAND" placeholder:"COMMAND" help:"oauthbearer: command that prints the token, run again at each login, without a shell"`
	TokenURL         string    `yaml:"token_url" name:"token-url" env:"TOKEN_URL" placeholder:"URL" help:"oauthbearer: endpoint that returns a token for client_id and its secret (client credentials)"`
	TokenCAFile      string    `yaml:"token_ca_file" name:"token-ca-file" env:"TOKEN_CA_FILE" placeholder:"FILE" help:"token_url: file with the certificates of the authorities that sign its certificate (PEM); empty: the system's authorities"`
	ClientID         string    `yaml:"client_id" name:"client-id" env:"CLIENT_ID" placeholder:"ID" help:"token_url: id of the client that requests the token"`
	ClientSecret     Secret    `yaml:"client_secret" secret:"yes" name:"client-secret" env:"CLIENT_SECRET" placeholder:"WORD" help:"token_url: secret of client_id; a file is safer"`
	ClientSecretFile string    `yaml:"client_secret_file" name:"client-secret-file" env:"CLIENT_SECRET_FILE" placeholder:"FILE" help:"file that holds the secret, read again for each token"`
	Scope            string    `yaml:"scope" name:"scope" env:"SCOPE" placeholder:"SCOPE" help:"token_url: scopes to request, separated by spaces"`
	Extensions       string    `yaml:"extensions" name:"extensions" env:"EXTENSIONS" placeholder:"PAIRS" help:"oauthbearer: pairs that the service needs in addition to the token, logicalCluster=lkc-1,identityPoolId=pool-1 for example"`
	Region           string    `yaml:"region" name:"region" env:"REGION" placeholder:"REGION" help:"aws-msk-iam: region of the cluster; empty: the region in the broker's name, or AWS_REGION"`
}

// Mechanism is a SASL mechanism.
type Mechanism string

// The mechanisms.
const (
	NoLogin     Mechanism = ""
	Plain       Mechanism = "plain"
	ScramSHA256 Mechanism = "scram-sha-256"
	ScramSHA512 Mechanism = "scram-sha-512"
	OAuthBearer Mechanism = "oauthbearer"
	AWSMSKIAM   Mechanism = "aws-msk-iam"
)

var mechanisms = []string{string(Plain), string(ScramSHA256), string(ScramSHA512), string(OAuthBearer), string(AWSMSKIAM)}

// Names is a function that returns the user's name of a key of [Kafka], for example of tls_ca_file or sasl.username.
type Names func(key string) string

// Keys returns the name of a key in a configuration file: kafka.tls_ca_file.
func Keys(key string) string { return "kafka." + key }

// Flags returns the function for the names on the command line of a program whose variables begin with env:
// --kafka-tls-ca-file (ORDERS_KAFKA_TLS_CA_FILE).
func Flags(env string) Names {
	return func(key string) string {
		return fmt.Sprintf("--kafka-%s (%sKAFKA_%s)", strings.NewReplacer(".", "-", "_", "-").Replace(key), env, strings.ToUpper(strings.ReplaceAll(key, ".", "_")))
	}
}

// setting is the value of one key.
type setting struct{ key, value string }

// Check returns an error with every mistake in the settings and in the files that they name, a sentence for each, or
// nil. It opens no connection and runs no command.
func (k *Kafka) Check(name Names) error {
	errs := k.mistakes(name)
	if len(errs) > 0 {
		return errors.Join(errs...) // until these are corrected, it is not known which file is meant
	}
	s := &k.SASL
	if k.TLSCAFile != "" {
		errs = append(errs, about(name("tls_ca_file"), checkAuthorities(k.TLSCAFile)))
	}
	if k.TLSCertFile != "" {
		_, err := readPair(name("tls_cert_file"), k.TLSCertFile, name("tls_key_file"), k.TLSKeyFile, clearKey)
		errs = append(errs, err)
	}
	if s.TokenCAFile != "" {
		errs = append(errs, about(name("sasl.token_ca_file"), checkAuthorities(s.TokenCAFile)))
	}
	for _, f := range []setting{{"sasl.password_file", s.PasswordFile}, {"sasl.token_file", s.TokenFile}, {"sasl.client_secret_file", s.ClientSecretFile}} {
		if f.value != "" {
			word, err := readWord(f.value)
			if err == nil && f.key == "sasl.token_file" && !tokenPattern.MatchString(word) {
				err = errNoToken
			}
			errs = append(errs, about(name(f.key), err))
		}
	}
	return errors.Join(errs...)
}

// mistakes returns an error for each combination of settings that cannot work.
func (k *Kafka) mistakes(name Names) (errs []error) {
	s := &k.SASL
	bad := func(key, format string, args ...any) {
		errs = append(errs, fmt.Errorf("%s: "+format, append([]any{name(key)}, args...)...))
	}
	files := []setting{{"tls_ca_file", k.TLSCAFile}, {"tls_cert_file", k.TLSCertFile}, {"tls_key_file", k.TLSKeyFile}}
	for _, f := range append(files, setting{"tls_server_name", k.TLSServerName}) {
		if f.value != "" && !k.TLS {
			bad(f.key, "it is for connections with TLS: set %s too, or leave it out", name("tls"))
		}
	}
	for _, f := range append(files, setting{"sasl.password_file", s.PasswordFile}, setting{"sasl.token_file", s.TokenFile},
		setting{"sasl.token_ca_file", s.TokenCAFile}, setting{"sasl.client_secret_file", s.ClientSecretFile}) {
		if f.value != "" && !filepath.IsAbs(f.value) {
			bad(f.key, "%q depends on where the process is started: write the whole path, from / on", f.value)
		}
	}
	switch {
	case k.TLSCertFile != "" && k.TLSKeyFile == "":
		bad("tls_key_file", "missing: the client certificate of %s needs its key", name("tls_cert_file"))
	case k.TLSCertFile == "" && k.TLSKeyFile != "":
		bad("tls_cert_file", "missing: the key of %s needs its certificate", name("tls_key_file"))
	}

	password := []setting{{"sasl.password", s.Password.Reveal()}, {"sasl.password_file", s.PasswordFile}, {"sasl.password_command", s.PasswordCommand}}
	token := []setting{{"sasl.token_file", s.TokenFile}, {"sasl.token_command", s.TokenCommand}, {"sasl.token_url", s.TokenURL}}
	endpoint := []setting{
		{"sasl.client_id", s.ClientID},
		{"sasl.client_secret", s.ClientSecret.Reveal()},
		{"sasl.client_secret_file", s.ClientSecretFile},
		{"sasl.scope", s.Scope},
		{"sasl.token_ca_file", s.TokenCAFile},
	}
	takes := func(what string, settings ...setting) {
		for _, given := range given(settings) {
			bad(given.key, "it is for %s, and %s is %q: leave it out, or correct the mechanism", what, name("sasl.mechanism"), s.Mechanism)
		}
	}
	one := func(what string, settings []setting) bool {
		switch n := given(settings); {
		case len(n) == 0:
			bad(settings[0].key, "missing: mechanism %s needs %s: set this one, %s or %s", s.Mechanism, what, name(settings[1].key), name(settings[2].key))
		case len(n) > 1:
			bad(n[1].key, "%s says where %s comes from already: leave one of them out", name(n[0].key), what)
		}
		return len(given(settings)) == 1
	}
	switch s.Mechanism {
	case NoLogin:
	case Plain, ScramSHA256, ScramSHA512:
		if s.Username == "" {
			bad("sasl.username", "missing: mechanism %s needs a user", s.Mechanism)
		}
		one("the password", password)
	case OAuthBearer:
		if one("the token", token) && s.TokenURL != "" {
			k.endpointMistakes(name, bad)
		} else {
			for _, given := range given(endpoint) {
				bad(given.key, "it is for %s: set that, or leave it out", name("sasl.token_url"))
			}
		}
		if _, err := s.extensions(); err != nil {
			bad("sasl.extensions", "%w", err)
		}
	case AWSMSKIAM:
		if !k.TLS {
			bad("tls", "missing: Amazon MSK takes IAM over TLS only: set it to true, and name the IAM port in the brokers, 9098 or 9198")
		}
		if awsLogin == nil {
			bad("sasl.mechanism", "%q is not built into this program: import github.com/walpost/walpost/cdc/identity/aws in its main package", s.Mechanism)
		}
	default:
		bad("sasl.mechanism", "%q: write %s", s.Mechanism, orOf(mechanisms))
		return errs
	}
	if s.Mechanism != Plain && s.Mechanism != ScramSHA256 && s.Mechanism != ScramSHA512 {
		takes("plain and scram", append(password, setting{"sasl.username", s.Username})...)
	}
	if s.Mechanism != OAuthBearer {
		takes("oauthbearer", slices.Concat(token, endpoint, []setting{{"sasl.extensions", s.Extensions}})...)
	}
	if s.Mechanism != AWSMSKIAM {
		takes("aws-msk-iam", setting{"sasl.region", s.Region})
	}
	return errs
}

// endpointMistakes reports with bad the mistakes in the settings of token_url.
func (k *Kafka) endpointMistakes(name Names, bad func(key, format string, args ...any)) {
	s := &k.SASL
	u, err := url.Parse(s.TokenURL)
	if err != nil || u.Host == "" || u.Scheme != "https" && u.Scheme != "http" {
		bad("sasl.token_url", "it is no URL: write https://login.example/oauth2/token")
	}
	if s.ClientID == "" {
		bad("sasl.client_id", "missing: %s needs to know who asks", name("sasl.token_url"))
	}
	switch n := len(given([]setting{{"", s.ClientSecret.Reveal()}, {"", s.ClientSecretFile}})); n {
	case 0:
		bad("sasl.client_secret_file", "missing: %s needs the secret of %s: set this one or %s", name("sasl.token_url"), name("sasl.client_id"), name("sasl.client_secret"))
	case 2:
		bad("sasl.client_secret_file", "%s is set already: leave one of them out", name("sasl.client_secret"))
	}
}

// extensions returns the pairs of the setting extensions.
func (s *SASL) extensions() (map[string]string, error) {
	pairs := map[string]string{}
	for pair := range strings.SplitSeq(s.Extensions, ",") {
		if pair = strings.TrimSpace(pair); pair == "" {
			continue
		}
		key, value, ok := strings.Cut(pair, "=")
		if !ok || strings.Trim(key, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ") != "" || key == "" || key == "auth" || value == "" {
			return nil, fmt.Errorf("%q is no pair of letters and a value: write logicalCluster=lkc-1,identityPoolId=pool-1", pair)
		}
		pairs[key] = value
	}
	return pairs, nil
}

// Warnings returns a sentence for each setting that works, but is not safe.
func (k *Kafka) Warnings(name Names, brokers []string) (said []string) {
	if u, err := url.Parse(k.SASL.TokenURL); err == nil && u.Scheme == "http" && !loopback(u.Host) {
		said = append(said, fmt.Sprintf("%s: the client secret and the token go to %s without TLS: write https://, if the service has TLS", name("sasl.token_url"), u.Host))
	}
	if s := k.SASL.Mechanism; !k.TLS && (s == Plain || s == OAuthBearer) {
		if at := slices.IndexFunc(brokers, func(b string) bool { return !loopback(b) }); at >= 0 {
			said = append(said, fmt.Sprintf("%s: %s sends the password or the token to %s in clear, without TLS, so that others on the network can read it: set %s, if Kafka has TLS", name("sasl.mechanism"), s, brokers[at], name("tls")))
		}
	}
	return said
}

// loopback reports whether an address, with or without a port, is a loopback address.
func loopback(address string) bool {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		host = address
	}
	ip := net.ParseIP(strings.Trim(host, "[]"))
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// given returns the settings that have a value.
func given(settings []setting) (set []setting) {
	for _, s := range settings {
		if s.value != "" {
			set = append(set, s)
		}
	}
	return set
}

// orOf joins words for a sentence: a, b or c.
func orOf(words []string) string {
	last := len(words) - 1
	if last < 1 {
		return strings.Join(words, "")
	}
	return strings.Join(words[:last], ", ") + " or " + words[last]
}

// mistakeError is the error of a setting. Its sentence begins with the setting's name.
type mistakeError struct{ err error }

func (m *mistakeError) Error() string { return m.err.Error() }
func (m *mistakeError) Unwrap() error { return m.err }

// about returns err as a mistakeError that begins with the name of the setting; nil for nil.
func about(name string, err error) error {
	if err == nil {
		return nil
	}
	return &mistakeError{fmt.Errorf("%s: %w", name, err)}
}

package identity

import (
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"time"
)

// dialWithin is how long a connection and its handshake may take. It is shorter than the client's timeout.
const dialWithin = 8 * time.Second

// readAuthorities returns the certificates of a file.
func readAuthorities(path string) (*x509.CertPool, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read the file: %w", err)
	}
	certs, err := certificates(path, text)
	if err != nil {
		return nil, err
	}
	pool, valid := x509.NewCertPool(), false
	for _, cert := range certs {
		pool.AddCert(cert)
		valid = valid || time.Now().Before(cert.NotAfter)
	}
	if !valid {
		last := certs[len(certs)-1]
		return nil, &expiredError{fmt.Errorf("the authority %s in the file %s has expired at %s: write the new certificate of the authority there", last.Subject, path, last.NotAfter.UTC().Format(time.RFC3339))}
	}
	return pool, nil
}

// expiredError is the error of a certificate or a token that has expired.
type expiredError struct{ error }

// checkAuthorities returns an error if the file does not contain certificates. Expired ones are no error, because a
// process must start although the new file is written only later.
func checkAuthorities(path string) error {
	_, err := readAuthorities(path)
	if errors.As(err, new(*expiredError)) {
		return nil
	}
	return err
}

// certificates returns the certificates of a PEM file, at least one.
func certificates(path string, text []byte) (certs []*x509.Certificate, err error) {
	blocks := 0 // pem.Decode skips damaged blocks
	for rest := text; ; blocks++ {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		if block.Type != "CERTIFICATE" && block.Type != "TRUSTED CERTIFICATE" {
			continue
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("certificate %d in the file %s cannot be read: %w", len(certs)+1, path, err)
		}
		certs = append(certs, cert)
	}
	if begun := bytes.Count(text, []byte("-----BEGIN ")); begun > blocks {
		return nil, fmt.Errorf("the file %s is cut off or damaged: of the %d things that begin in it %d can be read: copy it again", path, begun, blocks)
	}
	if len(certs) == 0 {
		return nil, fmt.Errorf("the file %s holds no certificate: %s", path, instead(text, "-----BEGIN CERTIFICATE-----"))
	}
	return certs, nil
}

// instead returns what to write to a file that is not PEM. begin is the line with which the PEM would begin.
func instead(text []byte, begins string) string {
	switch {
	case len(bytes.TrimSpace(text)) == 0:
		return "it is empty: write PEM there, which begins with " + begins
	case bytes.HasPrefix(text, []byte{0xfe, 0xed, 0xfe, 0xed}):
		return "it is a Java keystore: turn it into PKCS#12 with `keytool -importkeystore -deststoretype PKCS12`, and that into PEM with `openssl pkcs12 -nodes`"
	case bytes.HasPrefix(text, []byte{0x30}):
		return "it is DER or PKCS#12: turn it into PEM with `openssl x509 -inform der` or `openssl pkcs12 -nodes`"
	}
	return "write PEM there, which begins with " + begins
}

// readPair returns the client certificate and its key; certKey and keyKey are the names of their settings for errors.
func readPair(certKey, certFile, keyKey, keyFile string, readKey func(path string) ([]byte, error)) (*tls.Certificate, error) {
	certs, err := os.ReadFile(certFile)
	if err != nil {
		return nil, about(certKey, fmt.Errorf("read the file: %w", err))
	}
	if _, err := certificates(certFile, certs); err != nil {
		return nil, about(certKey, err)
	}
	key, err := readKey(keyFile)
	if err != nil {
		return nil, about(keyKey, err)
	}
	if !bytes.Contains(key, []byte("PRIVATE KEY-----")) {
		return nil, about(keyKey, fmt.Errorf("the file %s holds no key: %s", keyFile, instead(key, "-----BEGIN PRIVATE KEY-----")))
	}
	pair, err := tls.X509KeyPair(certs, key)
	switch {
	case err != nil && strings.Contains(err.Error(), "does not match"):
		return nil, about(keyKey, fmt.Errorf("the key in the file %s does not fit the certificate in %s: write the two that were made together", keyFile, certFile))
	case err != nil:
		return nil, about(keyKey, fmt.Errorf("the key in the file %s cannot be used: %w: write a key that openssl pkey -in %s can read", keyFile, err, keyFile))
	}
	return &pair, nil
}

// clearKey returns the key of a file, and an error if it has a passphrase.
func clearKey(path string) ([]byte, error) {
	key, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read the file: %w", err)
	}
	if bytes.Contains(key, []byte("ENCRYPTED")) {
		return nil, fmt.Errorf("the key in the file %s has a passphrase, which this process cannot ask for: write it without one, `openssl pkey -in %s -out new.key`", path, path)
	}
	return key, nil
}

// endOf returns the time when a client certificate expires; zero if there is none.
func endOf(pair *tls.Certificate) time.Time {
	if pair == nil {
		return time.Time{}
	}
	return pair.Leaf.NotAfter
}

// inTime returns an error if the certificate has expired, or is not valid yet.
func inTime(pair *tls.Certificate) error {
	switch leaf := pair.Leaf; {
	case !time.Now().Before(leaf.NotAfter):
		return &expiredError{fmt.Errorf("the client certificate %s has expired at %s: write the renewed one, and its key, there", leaf.Subject, leaf.NotAfter.UTC().Format(time.RFC3339))}
	case time.Now().Before(leaf.NotBefore):
		return fmt.Errorf("the client certificate %s is not valid before %s: correct the clock of this machine, or write another one there", leaf.Subject, leaf.NotBefore.UTC().Format(time.RFC3339))
	}
	return nil
}

// connection opens connections with TLS, each with the present contents of the files.
type connection struct {
	serverName  string
	authorities *kept[*x509.CertPool]   // nil: the system's authorities
	pair        *kept[*tls.Certificate] // nil: no client certificate
	asked       func()                  // is called if the server requests a client certificate and there is none
}

func (c *connection) config(ctx context.Context) (*tls.Config, error) {
	cfg := &tls.Config{ServerName: c.serverName, MinVersion: tls.VersionTLS12}
	if c.authorities != nil {
		pool, err := c.authorities.get(ctx)
		if err != nil {
			return nil, about(c.authorities.key, err)
		}
		cfg.RootCAs = pool
	}
	pair := &tls.Certificate{}
	if c.pair != nil {
		var err error
		if pair, err = c.pair.get(ctx); err != nil {
			return nil, err
		}
	}
	// Send the certificate also to a server that names other authorities, so that the server answers with its reason.
	cfg.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
		if c.pair == nil && c.asked != nil {
			c.asked()
		}
		return pair, nil
	}
	return cfg, nil
}

// dial connects to host:port.
func (c *connection) dial(ctx context.Context, network, address string) (net.Conn, error) {
	cfg, err := c.config(ctx)
	if err != nil {
		return nil, err
	}
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	cfg.ServerName = cmp.Or(cfg.ServerName, host)
	ctx, cancel := context.WithTimeout(ctx, dialWithin)
	defer cancel()
	plain, err := (&net.Dialer{}).DialContext(ctx, network, address)
	if err != nil {
		return nil, err
	}
	conn := tls.Client(plain, cfg)
	if err := conn.HandshakeContext(ctx); err != nil {
		_ = plain.Close()
		if errors.Is(ctx.Err(), context.DeadlineExceeded) {
			err = errNoHandshake
		}
		return nil, err
	}
	return conn, nil
}

var errNoHandshake = fmt.Errorf("no answer to the TLS handshake within %s", dialWithin)

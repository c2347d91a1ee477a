package identity

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"runtime"
	"time"
)

// readRoots returns the authorities of the file sslrootcert; nil where none is named: then those of the system are asked.
func readRoots(path string) (*x509.CertPool, error) {
	if path == "" || path == "system" {
		return nil, nil
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("sslrootcert: %w", err)
	}
	pool := x509.NewCertPool()
	var last *x509.Certificate // the one that ends last
	for block, rest := pem.Decode(text); block != nil; block, rest = pem.Decode(rest) {
		if block.Type != "CERTIFICATE" {
			continue
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("sslrootcert: a certificate in %s cannot be read: %w: copy the file again", path, err)
		}
		pool.AddCert(cert)
		if last == nil || cert.NotAfter.After(last.NotAfter) {
			last = cert
		}
	}
	switch {
	case last == nil:
		return nil, fmt.Errorf("sslrootcert: there is no certificate in %s: write the authority's there, as PEM", path)
	case last.NotAfter.Before(time.Now()):
		return nil, fmt.Errorf("sslrootcert: the authority's certificate in %s (%s) ended on %s: put the new one there", path, last.Subject, day(last.NotAfter))
	}
	return pool, nil
}

// readOwn returns the certificate of sslcert with the key of sslkey; nil where none is named.
func (u params) readOwn() (*tls.Certificate, error) {
	certFile, keyFile := u.files["sslcert"], u.files["sslkey"]
	switch {
	case certFile == "" && keyFile == "" || u.pool.ConnConfig.SSLCertMode == "disable":
		return nil, nil
	case certFile == "":
		return nil, errors.New("sslkey is there without sslcert: name the certificate's file, too")
	case keyFile == "":
		return nil, errors.New("sslcert is there without sslkey: name the key's file, too")
	}
	cert, err := os.ReadFile(certFile)
	if err != nil {
		return nil, fmt.Errorf("sslcert: %w", err)
	}
	if err := private(keyFile); err != nil {
		return nil, fmt.Errorf("sslkey: %w", err)
	}
	text, err := os.ReadFile(keyFile)
	if err != nil {
		return nil, fmt.Errorf("sslkey: %w", err)
	}
	key, err := decrypt(text, keyFile, u.files["sslpassword"])
	if err != nil {
		return nil, fmt.Errorf("sslkey: %w", err)
	}
	if block, _ := pem.Decode(cert); block == nil || block.Type != "CERTIFICATE" {
		return nil, fmt.Errorf("sslcert: there is no certificate in %s: write it there, as PEM", certFile)
	}
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		return nil, fmt.Errorf("the key in %s (sslkey) does not fit the certificate in %s (sslcert), or one of them is damaged (%w): write the two that were issued together", keyFile, certFile, err)
	}
	if pair.Leaf.NotAfter.Before(time.Now()) {
		return nil, fmt.Errorf("sslcert: the certificate in %s (%s) ended on %s: put the new one there, with its key", certFile, pair.Leaf.Subject, day(pair.Leaf.NotAfter))
	}
	return &pair, nil
}

// decrypt returns the key as PEM, in clear.
func decrypt(text []byte, path, password string) ([]byte, error) {
	block, _ := pem.Decode(text)
	switch {
	case block == nil:
		return nil, fmt.Errorf("there is no key in %s: write it there, as PEM", path)
	case block.Type == "ENCRYPTED PRIVATE KEY":
		return nil, fmt.Errorf("the key in %s is encrypted as PKCS #8, which is not read here: write it in the older form (openssl rsa -aes256 -traditional) and name sslpassword, or in clear (openssl pkey -in %[1]s) for this user alone", path)
	case !x509.IsEncryptedPEMBlock(block): //lint:ignore SA1019 libpq and pgx take such keys
		return text, nil
	case password == "":
		return nil, fmt.Errorf("the key in %s is encrypted: name its password in sslpassword (PGSSLPASSWORD)", path)
	}
	der, err := x509.DecryptPEMBlock(block, []byte(password)) //lint:ignore SA1019 libpq and pgx take such keys
	if err != nil {
		return nil, fmt.Errorf("sslpassword does not open the key in %s: correct it", path)
	}
	return pem.EncodeToMemory(&pem.Block{Type: block.Type, Bytes: der}), nil
}

// private returns an error where every user of the machine may read the file. A group may: a file that a container's user reads through
// its group is mounted so.
func private(path string) error {
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	if runtime.GOOS != "windows" && info.Mode().Perm()&0o007 != 0 {
		return fmt.Errorf("every user of this machine may read %s: chmod o-rwx %[1]s", path)
	}
	return nil
}

func day(t time.Time) string { return t.UTC().Format("2006-01-02 15:04 MST") }

package identity

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"runtime"
)

// readOwn returns the certificate of sslcert with the key of sslkey; nil if neither is set.
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
	pair, err := readPair("sslcert", certFile, "sslkey", keyFile, u.readKey)
	if err != nil {
		return nil, err
	}
	return pair, about("sslcert", inTime(pair))
}

// leaf returns the certificate without its chain; nil if there is none.
func leaf(own *tls.Certificate) *x509.Certificate {
	if own == nil {
		return nil
	}
	return own.Leaf
}

// readKey returns the key as unencrypted PEM.
func (u params) readKey(path string) ([]byte, error) {
	if err := private(path); err != nil {
		return nil, err
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read the file: %w", err)
	}
	return decrypt(text, path, u.files["sslpassword"])
}

// decrypt returns the key unencrypted, if the text is a key.
func decrypt(text []byte, path, password string) ([]byte, error) {
	block, _ := pem.Decode(text)
	switch {
	case block == nil:
		return text, nil
	case block.Type == "ENCRYPTED PRIVATE KEY":
		return nil, fmt.Errorf("the key in %s is encrypted as PKCS #8, which is not read here: write it in the older form (openssl rsa -aes256 -traditional) and name sslpassword, or in clear (openssl pkey -in %[1]s) for this user alone", path)
	case !x509.IsEncryptedPEMBlock(block): //lint:ignore SA1019 libpq and pgx take such keys
		return text, nil
	case password == "":
		return nil, fmt.Errorf("the key in %s is encrypted: name its password in sslpassword (PGSSLPASSWORD)", path)
	}
	der, err := x509.DecryptPEMBlock(block, []byte(password)) //lint:ignore SA1019 libpq and pgx take such keys
	if err != nil || !isKey(der) {
		return nil, fmt.Errorf("sslpassword does not open the key in %s: correct it", path)
	}
	return pem.EncodeToMemory(&pem.Block{Type: block.Type, Bytes: der}), nil
}

// isKey reports whether the bytes are a key. One wrong password in 256 gives other bytes and no error: the old form has no checksum.
func isKey(der []byte) bool {
	_, rsaErr := x509.ParsePKCS1PrivateKey(der)
	_, ecErr := x509.ParseECPrivateKey(der)
	_, pkcs8Err := x509.ParsePKCS8PrivateKey(der)
	return rsaErr == nil || ecErr == nil || pkcs8Err == nil
}

// private returns an error if every user of the machine may read the file. The group may read it, because containers
// often mount a file that their user reads through its group.
func private(path string) error {
	info, err := os.Stat(path)
	if err != nil {
		return fmt.Errorf("read the file: %w", err)
	}
	if runtime.GOOS != "windows" && info.Mode().Perm()&0o007 != 0 {
		return fmt.Errorf("every user of this machine may read %s: chmod o-rwx %[1]s", path)
	}
	return nil
}

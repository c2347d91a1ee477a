package cdctest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"testing"
	"time"
)

// Authority issues certificates to the servers and clients of a test.
type Authority struct {
	File string // its own certificate, as PEM

	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

// Certificate describes a certificate that an Authority issues.
type Certificate struct {
	Name  string    // common name: a client's role
	Hosts []string  // a server's names and addresses; a client has none
	Until time.Time // the end of its validity; zero: an hour from now
}

// Pair names the files of a certificate and its key (PKCS #8), as PEM.
type Pair struct{ CertFile, KeyFile string }

// NewAuthority returns a new authority. until is the end of its certificate's validity; zero: an hour from now.
func NewAuthority(t testing.TB, name string, until time.Time) *Authority {
	t.Helper()
	template := newTemplate(name, until)
	template.IsCA, template.BasicConstraintsValid, template.KeyUsage = true, true, x509.KeyUsageCertSign|x509.KeyUsageCRLSign
	a := &Authority{cert: template, key: newKey(t)}
	a.File = filepath.Join(newFolder(t), "ca.crt")
	der := a.sign(t, template, a.key)
	var err error
	if a.cert, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	writePEM(t, a.File, "CERTIFICATE", der)
	return a
}

// Issue writes a certificate and its key to a new folder. The key of a server belongs to the user who runs PostgreSQL:
// PostgreSQL requires that.
func (a *Authority) Issue(t testing.TB, c Certificate) Pair {
	t.Helper()
	template := newTemplate(c.Name, c.Until)
	template.KeyUsage = x509.KeyUsageDigitalSignature
	template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
	for _, host := range c.Hosts {
		if ip := net.ParseIP(host); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, host)
		}
	}
	key := newKey(t)
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	folder := newFolder(t)
	p := Pair{filepath.Join(folder, "tls.crt"), filepath.Join(folder, "tls.key")}
	writePEM(t, p.CertFile, "CERTIFICATE", a.sign(t, template, key))
	writePEM(t, p.KeyFile, "PRIVATE KEY", der)
	if len(c.Hosts) > 0 {
		giveToServer(t, p.KeyFile)
	}
	return p
}

// Revoke writes a revocation list that contains this certificate, and returns the list's file.
func (a *Authority) Revoke(t testing.TB, p Pair) string {
	t.Helper()
	pair, err := tls.LoadX509KeyPair(p.CertFile, p.KeyFile)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	der, err := x509.CreateRevocationList(rand.Reader, &x509.RevocationList{
		Number: big.NewInt(1), ThisUpdate: now.Add(-time.Hour), NextUpdate: now.Add(time.Hour),
		RevokedCertificateEntries: []x509.RevocationListEntry{{SerialNumber: pair.Leaf.SerialNumber, RevocationTime: now.Add(-time.Minute)}},
	}, a.cert, a.key)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(newFolder(t), "revoked.crl")
	writePEM(t, path, "X509 CRL", der)
	return path
}

// Replace moves the files of p over those of old, the certificate first: for a moment the key does not match.
func (p Pair) Replace(t testing.TB, old Pair) {
	t.Helper()
	for _, move := range [][2]string{{p.CertFile, old.CertFile}, {p.KeyFile, old.KeyFile}} {
		if err := os.Rename(move[0], move[1]); err != nil {
			t.Fatal(err)
		}
	}
}

func (a *Authority) sign(t testing.TB, template *x509.Certificate, key *ecdsa.PrivateKey) []byte {
	t.Helper()
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, &key.PublicKey, a.key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func newTemplate(name string, until time.Time) *x509.Certificate {
	now := time.Now()
	if until.IsZero() {
		until = now.Add(time.Hour)
	}
	return &x509.Certificate{
		SerialNumber: big.NewInt(now.UnixNano()), Subject: pkix.Name{CommonName: name},
		NotBefore: now.Add(-24 * time.Hour), NotAfter: until,
	}
}

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// newFolder returns a new folder that another user's process may read; t.TempDir is closed to others.
func newFolder(t testing.TB) string {
	t.Helper()
	folder, err := os.MkdirTemp("", "walpost-tls-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(folder) })
	if err := os.Chmod(folder, 0o755); err != nil {
		t.Fatal(err)
	}
	return folder
}

func writePEM(t testing.TB, path, kind string, der []byte) {
	t.Helper()
	mode := os.FileMode(0o644)
	if kind == "PRIVATE KEY" {
		mode = 0o600
	}
	if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), mode); err != nil {
		t.Fatal(err)
	}
}

// giveToServer gives the file to the user who runs PostgreSQL, if root runs the test.
func giveToServer(t testing.TB, path string) {
	t.Helper()
	if os.Getuid() != 0 {
		return
	}
	who, err := user.Lookup("postgres")
	if err != nil {
		who, err = user.Lookup("nobody")
	}
	if err != nil {
		t.Fatal(err)
	}
	uid, err := strconv.Atoi(who.Uid)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(path, uid, -1); err != nil {
		t.Fatal(err)
	}
}

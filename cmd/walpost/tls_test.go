package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"net/url"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/walpost/walpost/cdc/cdctest"
	"github.com/walpost/walpost/cdc/devenv"
)

// certificate writes a self-signed one for 127.0.0.1, as PostgreSQL insists that its files be kept.
func certificate(t testing.TB) (certFile, keyFile string) {
	t.Helper()
	dir, err := os.MkdirTemp("", "walpost-tls-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "127.0.0.1"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
	}
	cert, err := x509.CreateCertificate(rand.Reader, &template, &template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	certFile, keyFile = filepath.Join(dir, "server.crt"), filepath.Join(dir, "server.key")
	for path, block := range map[string]*pem.Block{certFile: {Type: "CERTIFICATE", Bytes: cert}, keyFile: {Type: "EC PRIVATE KEY", Bytes: der}} {
		if err := os.WriteFile(path, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
		if os.Getuid() != 0 {
			continue
		}
		// Run by root, the server is somebody else's process.
		who, err := user.Lookup("postgres")
		if err != nil {
			who, err = user.Lookup("nobody")
		}
		if err != nil {
			t.Fatal(err)
		}
		uid, _ := strconv.Atoi(who.Uid)
		if err := os.Chown(path, uid, -1); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return certFile, keyFile
}

// TestRelayOverTLS streams under load through TLS with the server's certificate verified, where a read ends with a
// record.
func TestRelayOverTLS(t *testing.T) {
	t.Parallel()
	cdctest.Long(t, endToEnd)
	certFile, keyFile := certificate(t)
	server := cdctest.OwnPostgres(t, devenv.PostgresConfig{Settings: map[string]string{"ssl": "on", "ssl_cert_file": certFile, "ssl_key_file": keyFile}})
	if err := server.CreateDatabase(t.Context(), "shop"); err != nil {
		t.Fatal(err)
	}
	s := newTestbedOn(t, server.URL("shop"), cdctest.Kafka(t))
	u, err := url.Parse(s.Env["WALPOST_SOURCE_URL"])
	if err != nil {
		t.Fatal(err)
	}
	u.RawQuery = url.Values{"sslmode": {"verify-full"}, "sslrootcert": {certFile}}.Encode()
	s.Env["WALPOST_SOURCE_URL"] = u.String()
	s.MustRun("init")
	w := cdctest.StartWriter(t, cdctest.WriterConfig{URL: s.AdminURL, Events: 20_000})
	ledger := w.Wait()
	r := s.StartRelay()
	r.WaitForLog(20*time.Second, `"wire":"tcp, round trip `)
	if on := s.Query("SELECT bool_and(ssl)::text FROM pg_stat_ssl JOIN pg_stat_replication USING (pid)"); on != "true" {
		t.Fatal("the replication connection is not encrypted")
	}
	if report := s.CheckDelivered(ledger); report.Duplicates > 0 {
		t.Errorf("%d duplicates without a fault", report.Duplicates)
	}
	if err := r.Stop(); err != nil {
		t.Error(err)
	}
}

package cdctest

import (
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"math/big"
	"net/http"
	"os"
	"testing"
	"time"
)

// Tokens signs tokens (JWT, RS256) like a service that a Kafka trusts.
type Tokens struct {
	Issuer, Audience string

	key *rsa.PrivateKey
	id  string
}

// NewTokens returns a service with a new key.
func NewTokens(t testing.TB, issuer, audience string) *Tokens {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	return &Tokens{Issuer: issuer, Audience: audience, key: key, id: rand.Text()}
}

// WriteKeys writes the public key to a file (JWKS).
func (s *Tokens) WriteKeys(t testing.TB, path string) {
	t.Helper()
	text, err := json.Marshal(map[string]any{"keys": []map[string]string{{
		"kty": "RSA", "use": "sig", "alg": "RS256", "kid": s.id,
		"n": encode(s.key.N.Bytes()), "e": encode(big.NewInt(int64(s.key.E)).Bytes()),
	}}})
	if err == nil {
		err = os.WriteFile(path, text, 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// Sign returns a token for a subject that is valid for lasts, in whole seconds.
func (s *Tokens) Sign(subject string, lasts time.Duration) (string, error) {
	now := time.Now()
	header, err := json.Marshal(map[string]string{"alg": "RS256", "typ": "JWT", "kid": s.id})
	if err != nil {
		return "", err
	}
	claims, err := json.Marshal(map[string]any{
		"iss": s.Issuer, "aud": s.Audience, "sub": subject, "iat": now.Unix(), "exp": now.Add(lasts).Unix(), "jti": rand.Text(),
	})
	if err != nil {
		return "", err
	}
	signed := encode(header) + "." + encode(claims)
	sum := sha256.Sum256([]byte(signed))
	signature, err := rsa.SignPKCS1v15(rand.Reader, s.key, crypto.SHA256, sum[:])
	return signed + "." + encode(signature), err
}

// Endpoint returns a handler that gives tokens for a subject to a client that sends the secret (client credentials).
func (s *Tokens) Endpoint(subject, client, secret string, lasts time.Duration) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		id, given, basic := r.BasicAuth()
		if !basic {
			id, given = r.PostFormValue("client_id"), r.PostFormValue("client_secret")
		}
		w.Header().Set("Content-Type", "application/json")
		if id != client || given != secret {
			w.WriteHeader(http.StatusUnauthorized)
			_, _ = w.Write([]byte(`{"error": "invalid_client"}`))
			return
		}
		token, err := s.Sign(subject, lasts)
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		_ = json.NewEncoder(w).Encode(map[string]any{"access_token": token, "token_type": "Bearer", "expires_in": int(lasts.Seconds())})
	})
}

func encode(b []byte) string { return base64.RawURLEncoding.EncodeToString(b) }

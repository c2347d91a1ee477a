package aws

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/sasl/aws"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const broker = "b-1.shop.abc123.c2.kafka.eu-central-1.amazonaws.com"

// verified recomputes the signature as MSK does, and returns what was signed.
func verified(t *testing.T, payload []byte, secret string) map[string]string {
	t.Helper()
	said := map[string]string{}
	if err := json.Unmarshal(payload, &said); err != nil {
		t.Fatal(err)
	}
	query := url.Values{}
	for key, name := range map[string]string{
		"action": "Action", "x-amz-algorithm": "X-Amz-Algorithm", "x-amz-credential": "X-Amz-Credential", "x-amz-date": "X-Amz-Date",
		"x-amz-expires": "X-Amz-Expires", "x-amz-signedheaders": "X-Amz-SignedHeaders", "x-amz-security-token": "X-Amz-Security-Token",
	} {
		if value, ok := said[key]; ok {
			query.Set(name, value)
		}
	}
	hash := func(s string) string { sum := sha256.Sum256([]byte(s)); return hex.EncodeToString(sum[:]) }
	request := "GET\n/\n" + strings.ReplaceAll(query.Encode(), "+", "%20") + "\nhost:" + said["host"] + "\n\nhost\n" + hash("")
	_, scope, _ := strings.Cut(said["x-amz-credential"], "/")
	key := []byte("AWS4" + secret)
	for _, part := range append(strings.Split(scope, "/"), "AWS4-HMAC-SHA256\n"+said["x-amz-date"]+"\n"+scope+"\n"+hash(request)) {
		h := hmac.New(sha256.New, key)
		h.Write([]byte(part))
		key = h.Sum(nil)
	}
	if want := hex.EncodeToString(key); said["x-amz-signature"] != want {
		t.Errorf("the signature is %s, want %s of\n%s", said["x-amz-signature"], want, payload)
	}
	if said["version"] != "2020_10_22" || said["action"] != "kafka-cluster:Connect" || said["x-amz-signedheaders"] != "host" || said["user-agent"] == "" {
		t.Errorf("payload %s", payload)
	}
	return said
}

// TestCredentials takes credentials from each place that AWS has for them, and signs with them.
func TestCredentials(t *testing.T) {
	// The login of franz-go proves that verified recomputes the signature correctly.
	_, payload, err := aws.Auth{AccessKey: "AKIAOTHER", SecretKey: "other/+secret", SessionToken: "token/+="}.AsManagedStreamingIAMMechanism().Authenticate(t.Context(), broker+":9098")
	if err != nil {
		t.Fatal(err)
	}
	verified(t, payload, "other/+secret")

	folder := t.TempDir()
	t.Setenv("HOME", folder)
	for _, v := range os.Environ() {
		if name, _, _ := strings.Cut(v, "="); strings.HasPrefix(name, "AWS_") {
			t.Setenv(name, "")
		}
	}
	write := func(name, text string) string {
		path := filepath.Join(folder, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	until := time.Now().Add(time.Hour).UTC().Format(time.RFC3339)
	var mux http.ServeMux
	mux.HandleFunc("POST /", func(w http.ResponseWriter, r *http.Request) { // STS
		if r.FormValue("Action") != "AssumeRoleWithWebIdentity" || r.FormValue("WebIdentityToken") != "of-kubernetes" || r.FormValue("RoleArn") != "arn:aws:iam::1:role/walpost" {
			http.Error(w, "no", http.StatusForbidden)
			return
		}
		_, _ = fmt.Fprintf(w, `<AssumeRoleWithWebIdentityResponse><AssumeRoleWithWebIdentityResult><Credentials><AccessKeyId>AKIASTS</AccessKeyId>
			<SecretAccessKey>sts</SecretAccessKey><SessionToken>session</SessionToken><Expiration>%s</Expiration></Credentials></AssumeRoleWithWebIdentityResult></AssumeRoleWithWebIdentityResponse>`, until)
	})
	mux.HandleFunc("GET /container", func(w http.ResponseWriter, r *http.Request) { // ECS, EKS Pod Identity
		if r.Header.Get("Authorization") != "of-the-agent" {
			http.Error(w, "no", http.StatusForbidden)
			return
		}
		_, _ = fmt.Fprintf(w, `{"AccessKeyId":"AKIACONTAINER","SecretAccessKey":"container","Token":"session","Expiration":%q}`, until)
	})
	mux.HandleFunc("PUT /latest/api/token", func(w http.ResponseWriter, _ *http.Request) { // instance metadata
		w.Header().Set("X-Aws-Ec2-Metadata-Token-Ttl-Seconds", "60")
		_, _ = fmt.Fprint(w, "imds")
	})
	mux.HandleFunc("GET /latest/meta-data/iam/security-credentials/", func(w http.ResponseWriter, r *http.Request) {
		if !strings.HasSuffix(r.URL.Path, "/walpost") {
			_, _ = fmt.Fprint(w, "walpost")
			return
		}
		_, _ = fmt.Fprintf(w, `{"Code":"Success","Type":"AWS-HMAC","AccessKeyId":"AKIAINSTANCE","SecretAccessKey":"instance","Token":"session","Expiration":%q}`, until)
	})
	server := httptest.NewServer(&mux)
	t.Cleanup(func() { server.Close(); http.DefaultClient.CloseIdleConnections() })

	for _, c := range []struct {
		name        string
		environment map[string]string
		key, secret string
		session     bool
	}{
		{"the environment", map[string]string{"AWS_ACCESS_KEY_ID": "AKIAENV", "AWS_SECRET_ACCESS_KEY": "env", "AWS_SESSION_TOKEN": "session"}, "AKIAENV", "env", true},
		{"a shared file", map[string]string{"AWS_SHARED_CREDENTIALS_FILE": write("one", "[default]\naws_access_key_id = AKIAFILE\naws_secret_access_key = file\n")}, "AKIAFILE", "file", false},
		{"another profile", map[string]string{"AWS_PROFILE": "shop", "AWS_SHARED_CREDENTIALS_FILE": write("two", "[shop]\naws_access_key_id = AKIASHOP\naws_secret_access_key = shop\n")}, "AKIASHOP", "shop", false},
		{"a web identity", map[string]string{"AWS_ROLE_ARN": "arn:aws:iam::1:role/walpost", "AWS_WEB_IDENTITY_TOKEN_FILE": write("token", "of-kubernetes"), "AWS_ENDPOINT_URL_STS": server.URL}, "AKIASTS", "sts", true},
		{"a container", map[string]string{"AWS_CONTAINER_CREDENTIALS_FULL_URI": server.URL + "/container", "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE": write("agent", "of-the-agent")}, "AKIACONTAINER", "container", true},
		{"an instance", map[string]string{"AWS_EC2_METADATA_SERVICE_ENDPOINT": server.URL}, "AKIAINSTANCE", "instance", true},
	} {
		t.Run(c.name, func(t *testing.T) {
			for name, value := range c.environment {
				t.Setenv(name, value)
			}
			payload, err := login(t.Context(), broker, "eu-central-1")
			if err != nil {
				t.Fatal(err)
			}
			said := verified(t, payload, c.secret)
			if !strings.HasPrefix(said["x-amz-credential"], c.key+"/") || !strings.HasSuffix(said["x-amz-credential"], "/eu-central-1/kafka-cluster/aws4_request") || said["host"] != broker {
				t.Errorf("payload %s", payload)
			}
			if (said["x-amz-security-token"] == "session") != c.session {
				t.Errorf("session token %q", said["x-amz-security-token"])
			}
		})
	}
	t.Run("a file that is written again", func(t *testing.T) {
		t.Setenv("AWS_SHARED_CREDENTIALS_FILE", write("three", "[default]\naws_access_key_id = AKIAOLD\naws_secret_access_key = old\n"))
		for _, key := range []string{"old", "new"} {
			write("three", "[default]\naws_access_key_id = AKIA"+strings.ToUpper(key)+"\naws_secret_access_key = "+key+"\n")
			payload, err := login(t.Context(), broker, "eu-central-1")
			if err != nil {
				t.Fatal(err)
			}
			verified(t, payload, key)
		}
	})
	t.Run("none", func(t *testing.T) {
		t.Setenv("AWS_EC2_METADATA_DISABLED", "true")
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		_, err := login(ctx, broker, "eu-central-1")
		t.Log(err)
		if err == nil || !strings.HasPrefix(err.Error(), "no AWS credentials: ") || !strings.HasSuffix(err.Error(), "give this process a role (a service account on EKS, a task role, an instance profile) or the AWS_ variables") {
			t.Errorf("got %v", err)
		}
	})
	t.Run("a broken file", func(t *testing.T) {
		t.Setenv("AWS_EC2_METADATA_DISABLED", "true")
		t.Setenv("AWS_ROLE_ARN", "arn:aws:iam::1:role/walpost")
		t.Setenv("AWS_WEB_IDENTITY_TOKEN_FILE", filepath.Join(folder, "none"))
		_, err := login(t.Context(), broker, "eu-central-1")
		t.Log(err)
		if err == nil {
			t.Error("no token, and a login")
		}
	})
}

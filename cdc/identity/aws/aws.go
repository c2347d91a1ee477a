// Package aws lets a program log in to Amazon MSK by IAM (kafka.sasl.mechanism: aws-msk-iam): import it for its effect.
//
//	import _ "github.com/walpost/walpost/cdc/identity/aws"
//
// Credentials come from the places that all programs of AWS use: the environment, the shared files, a web identity
// (IRSA), the container (EKS Pod Identity, ECS) and the instance's metadata. The package reads them again for each
// login.
package aws

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"time"

	sdk "github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/aws/signer/v4"
	"github.com/aws/aws-sdk-go-v2/config"

	"github.com/walpost/walpost/cdc/identity"
	"github.com/walpost/walpost/cdc/version"
)

const (
	service = "kafka-cluster"
	// validFor is how long a signed login is valid, in seconds: longer than the clocks of two machines differ.
	validFor = "900"
	// emptyBody is the SHA-256 of an empty body.
	emptyBody = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
)

func init() { identity.RegisterAWS(login) }

// login returns a signed request to connect, as MSK's Java library sends it.
func login(ctx context.Context, host, region string) ([]byte, error) {
	cfg, err := config.LoadDefaultConfig(ctx, config.WithRegion(region))
	if err != nil {
		return nil, fmt.Errorf("AWS's configuration cannot be read: %w: correct ~/.aws/config or the AWS_ variables", err)
	}
	credentials, err := cfg.Credentials.Retrieve(ctx)
	if err != nil {
		return nil, fmt.Errorf("no AWS credentials: %w: give this process a role (a service account on EKS, a task role, an instance profile) or the AWS_ variables", short(err))
	}
	return sign(ctx, credentials, host, region, time.Now())
}

// short returns the error without the attempts that the SDK lists after it.
func short(err error) error {
	first, _, _ := strings.Cut(err.Error(), "\n")
	return errors.New(first)
}

// sign returns a request with the signature of these credentials, which is valid for some minutes after the time.
func sign(ctx context.Context, credentials sdk.Credentials, host, region string, at time.Time) ([]byte, error) {
	query := url.Values{"Action": {service + ":Connect"}, "X-Amz-Expires": {validFor}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+host+"/?"+query.Encode(), nil)
	if err != nil {
		return nil, fmt.Errorf("broker %s: %w", host, err)
	}
	signed, _, err := v4.NewSigner().PresignHTTP(ctx, credentials, req, emptyBody, service, region, at)
	if err != nil {
		return nil, fmt.Errorf("sign the login: %w", err)
	}
	u, err := url.Parse(signed)
	if err != nil {
		return nil, fmt.Errorf("sign the login: %w", err)
	}
	said := map[string]string{"version": "2020_10_22", "host": host, "user-agent": "walpost/" + version.Number}
	for key, values := range u.Query() {
		said[strings.ToLower(key)] = values[0]
	}
	return json.Marshal(said)
}

package identity

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/sasl"
)

// AWSLogin is a function that returns the signed request with which we log in to a broker of Amazon MSK, at this host
// of this region. Its error is a sentence with the reason.
type AWSLogin func(ctx context.Context, host, region string) ([]byte, error)

var awsLogin AWSLogin

// RegisterAWS sets the function for the login to Amazon MSK. Package cdc/identity/aws calls it. Only a program that
// imports that package contains the AWS SDK.
func RegisterAWS(login AWSLogin) { awsLogin = login }

// awsWithin is how long the SDK may take to find credentials. It is shorter than the timeout of a connection.
const awsWithin = 8 * time.Second

func (l *Login) aws() sasl.Mechanism { return &iam{login: l} }

// iam logs in to Amazon MSK.
type iam struct{ login *Login }

// Name returns the mechanism's name.
func (*iam) Name() string { return "AWS_MSK_IAM" }

// Authenticate begins a login.
func (m *iam) Authenticate(ctx context.Context, address string) (sasl.Session, []byte, error) {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return nil, nil, err
	}
	key, region := m.login.name("sasl.region"), m.login.k.SASL.Region
	if region == "" {
		region = regionOf(host)
	}
	if region == "" {
		return nil, nil, about(key, fmt.Errorf("missing: the name of the broker %s does not show the region, and AWS_REGION is not set: write eu-central-1, for example", host))
	}
	ctx, cancel := context.WithTimeout(ctx, awsWithin)
	defer cancel()
	first, err := awsLogin(ctx, host, region)
	if err != nil {
		return nil, nil, about(m.login.name("sasl.mechanism"), err)
	}
	return iamSession{}, first, nil
}

// regionOf returns the region in a broker's name, b-1.shop.abc123.c2.kafka.eu-central-1.amazonaws.com, or the
// environment's.
func regionOf(host string) string {
	if _, behind, ok := strings.Cut(host, ".amazonaws."); ok && behind != "" {
		labels := strings.Split(strings.TrimSuffix(host, ".amazonaws."+behind), ".")
		return labels[len(labels)-1]
	}
	if region := os.Getenv("AWS_REGION"); region != "" {
		return region
	}
	return os.Getenv("AWS_DEFAULT_REGION")
}

type iamSession struct{}

// Challenge reads Kafka's answer, which names the request.
func (iamSession) Challenge(said []byte) (bool, []byte, error) {
	if len(said) == 0 {
		return false, nil, errors.New("kafka has answered the AWS login with nothing")
	}
	return true, nil, nil
}

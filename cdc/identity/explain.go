package identity

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// RefusedError is the error of a Kafka that refuses our connection or login. Its sentence has the cause and what to do.
type RefusedError struct {
	sentence string
	err      error
	ours     bool
}

func (r *RefusedError) Error() string { return r.sentence }
func (r *RefusedError) Unwrap() error { return r.err }

// Ours reports whether the fault is in a setting of ours, or in a file or command that it names, and not in a broker.
func (r *RefusedError) Ours() bool { return r.ours }

// Explain returns the reason why Kafka at these addresses refuses us. It takes the reason from err or, if err is only a
// timeout, from the newest connection. It returns nil if neither has one, for example if no broker answers. It may ask
// Kafka which logins it accepts.
func (l *Login) Explain(ctx context.Context, at string, err error) error {
	if l == nil || err == nil {
		return nil
	}
	if timedOut(err) {
		if trouble := l.Trouble(); trouble != nil {
			return trouble
		}
	}
	var takes []string
	if errors.Is(err, kerr.UnsupportedSaslMechanism) {
		takes = l.takes(ctx)
	}
	return l.explain(at, err, takes)
}

// explain returns the reason from err alone. takes are the logins that Kafka accepts.
func (l *Login) explain(at string, err error, takes []string) error {
	var mistake *mistakeError
	if errors.As(err, &mistake) {
		return &RefusedError{mistake.Error(), err, true}
	}
	kafka := "kafka at " + at
	if said := l.tlsTrouble(kafka, err); said != "" {
		return &RefusedError{said, err, false}
	}
	said := cmp.Or(l.loginTrouble(kafka, err, takes), l.cutOff(kafka, err))
	if said == "" {
		return nil
	}
	if l.proof != nil {
		renewed := errors.Is(err, kerr.IllegalSaslState) && l.letIn()
		switch cause, ending := l.proof.cause(renewed); {
		case ending:
			return &RefusedError{cause, err, true}
		case cause != "":
			return &RefusedError{cause + "; the last good one is used, and " + said, err, true}
		}
	}
	return &RefusedError{said, err, false}
}

// tlsTrouble returns the fault of a certificate, the server's or ours; "" if err is about something else.
func (l *Login) tlsTrouble(kafka string, err error) string {
	if said := certificateTrouble(kafka, err, l.name("tls_ca_file"), l.k.TLSCAFile, l.name("tls_server_name")); said != "" {
		return said
	}
	if _, alert, ok := strings.Cut(err.Error(), "remote error: tls: "); ok {
		alert, _, _ = strings.Cut(alert, "\n")
		return l.alert(kafka, alert)
	}
	return ""
}

// loginTrouble returns the meaning of Kafka's answer to a login; "" if err is about something else.
func (l *Login) loginTrouble(kafka string, err error, takes []string) string {
	s := &l.k.SASL
	mechanism := l.name("sasl.mechanism")
	switch {
	case errors.Is(err, kerr.SaslAuthenticationFailed) || errors.Is(err, errTokenRefused):
		said := oneLine(strings.TrimPrefix(strings.TrimPrefix(err.Error(), kerr.SaslAuthenticationFailed.Error()), ": "))
		switch s.Mechanism {
		case OAuthBearer:
			return fmt.Sprintf("%s refuses the token of %s (%s): look at its issuer, its audience, its scope and its time, and at the clocks", kafka, l.tokenKey(), said)
		case AWSMSKIAM:
			return fmt.Sprintf("%s refuses the AWS credentials (%s): allow their role kafka-cluster:Connect on the cluster, and look at the clock and at %s", kafka, said, l.name("sasl.region"))
		case NoLogin:
		default:
			return fmt.Sprintf("%s refuses the login of user %q: correct %s and %s", kafka, s.Username, l.name("sasl.username"), l.password().key)
		}
	case errors.Is(err, kerr.IllegalSaslState) && l.letIn():
		return fmt.Sprintf("%s renews no login within a second of the last one (connections.max.reauth.ms there is too short, or a token was used in its last seconds): have a new token written or printed sooner; nothing is lost", kafka)
	case errors.Is(err, kerr.IllegalSaslState):
		return fmt.Sprintf("%s takes no login at this port, and %s is %s: leave that out, or name the port of a listener that takes logins", kafka, mechanism, s.Mechanism)
	case errors.Is(err, kerr.UnsupportedSaslMechanism):
		can := "walpost has " + orOf(mechanisms)
		if len(takes) > 0 {
			can = "it takes " + orOf(takes)
		}
		return fmt.Sprintf("%s does not take the login %s: %s: name one that it takes; %s", kafka, mechanism, s.Mechanism, can)
	}
	return ""
}

// letIn reports whether a broker has accepted our login before.
func (l *Login) letIn() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.inside
}

// tokenKey returns the key of the setting that the token comes from.
func (l *Login) tokenKey() string {
	switch s := &l.k.SASL; {
	case s.TokenURL != "":
		return l.name("sasl.token_url")
	case s.TokenCommand != "":
		return l.name("sasl.token_command")
	}
	return l.name("sasl.token_file")
}

// alert returns the meaning of a TLS alert that the broker has sent.
func (l *Login) alert(kafka, alert string) string {
	certFile, keyFile := l.name("tls_cert_file"), l.name("tls_key_file")
	l.mu.Lock()
	wanted := l.wanted
	l.mu.Unlock()
	expires := l.certs.ends()[certFile]
	switch {
	case strings.Contains(alert, "protocol version"):
		return fmt.Sprintf("%s has no TLS 1.2 and no newer one (%s): turn TLS 1.2 on there", kafka, alert)
	case strings.Contains(alert, "unrecognized name"):
		return fmt.Sprintf("%s does not know itself by the name it was called by (%s): correct %s or the brokers' names", kafka, alert, l.name("tls_server_name"))
	case l.k.TLSCertFile == "" && (wanted || strings.Contains(alert, "certificate")):
		return fmt.Sprintf("%s wants a client certificate (%s): name its files in %s and %s", kafka, alert, certFile, keyFile)
	case l.k.TLSCertFile == "":
		return fmt.Sprintf("%s ends the TLS handshake (%s): its log says why", kafka, alert)
	case strings.Contains(alert, "expired"):
		return fmt.Sprintf("%s refuses the client certificate of %s (%s), which expires at %s: write a renewed one there, and look at the clocks", kafka, certFile, alert, expires.UTC().Format(time.RFC3339))
	case strings.Contains(alert, "unknown certificate authority"):
		return fmt.Sprintf("%s does not know the authority that made the client certificate of %s (%s): write one there that Kafka's own authority for clients has made", kafka, certFile, alert)
	case strings.Contains(alert, "revoked"):
		return fmt.Sprintf("%s says that the client certificate of %s was revoked: write another one there", kafka, certFile)
	}
	return fmt.Sprintf("%s refuses the client certificate of %s (%s): write one there that Kafka trusts; its log says why", kafka, certFile, alert)
}

// cutOff returns the likely reason why the broker has ended a connection; "" if err is about something else.
func (l *Login) cutOff(kafka string, err error) string {
	l.mu.Lock()
	wanted := l.wanted
	l.mu.Unlock()
	ended := errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
	switch {
	case errors.Is(err, errNoHandshake):
		return fmt.Sprintf("%s takes the connection and gives %v: the port may speak no TLS (%s is true): name the port of a listener with TLS, or leave that out", kafka, errNoHandshake, l.name("tls"))
	case !ended && !strings.Contains(err.Error(), "tls alert") && !errors.As(err, new(tls.RecordHeaderError)):
		return ""
	case wanted:
		return fmt.Sprintf("%s asks for a client certificate, gets none, and ends the connection: name its files in %s and %s", kafka, l.name("tls_cert_file"), l.name("tls_key_file"))
	}
	return fmt.Sprintf("%s ends the connection: TLS on one side only (%s is %t), or another login than it wants (%s is %q); correct that, or user and password", kafka, l.name("tls"), l.k.TLS, l.name("sasl.mechanism"), l.k.SASL.Mechanism)
}

// certificateTrouble returns the reason why a server's certificate is not trusted; "" if err is about something else.
// caKey and nameKey name the settings that can change that; nameKey may be empty.
func certificateTrouble(server string, err error, caKey, caFile, nameKey string) string {
	var unknown x509.UnknownAuthorityError
	var name x509.HostnameError
	var invalid x509.CertificateInvalidError
	switch {
	case errors.As(err, &name):
		names := namesOf(name.Certificate)
		has := "a certificate for " + orOf(names)
		if len(names) == 0 {
			has = "a certificate that names no host (a common name alone does not count)"
		}
		can := "call it by one of its names"
		if nameKey != "" {
			can = "name the brokers as it does, or write one of its names into " + nameKey
		}
		return fmt.Sprintf("%s has %s, and not for %s: %s", server, has, name.Host, can)
	case errors.As(err, &unknown) && caFile != "":
		return fmt.Sprintf("%s has a certificate%s, and no authority in the file %s has made it: write the authority's certificate there (%s)", server, madeBy(unknown.Cert), caFile, caKey)
	case errors.As(err, &unknown):
		return fmt.Sprintf("%s has a certificate of an authority that this machine does not know%s: name the file with its certificate in %s", server, madeBy(unknown.Cert), caKey)
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired && invalid.Cert != nil:
		when := fmt.Sprintf("valid from %s to %s", invalid.Cert.NotBefore.UTC().Format(time.RFC3339), invalid.Cert.NotAfter.UTC().Format(time.RFC3339))
		if invalid.Cert.IsCA {
			return fmt.Sprintf("%s has a certificate whose authority %s is out of its time (%s): write the new certificate of the authority into the file of %s, and look at this machine's clock", server, invalid.Cert.Subject, when, caKey)
		}
		return fmt.Sprintf("%s has a certificate that is out of its time (%s): have it renewed there, and look at this machine's clock", server, when)
	case errors.As(err, &invalid):
		return fmt.Sprintf("%s has a certificate that cannot be used (%s): have another one made for it", server, oneLine(invalid.Error()))
	}
	return ""
}

// madeBy returns the issuer of a certificate in brackets.
func madeBy(cert *x509.Certificate) string {
	if cert == nil {
		return ""
	}
	return fmt.Sprintf(" (made by %s)", oneLine(cert.Issuer.String()))
}

// namesOf returns the hosts that a certificate names, five at most.
func namesOf(cert *x509.Certificate) []string {
	names := slices.Clone(cert.DNSNames)
	for _, ip := range cert.IPAddresses {
		names = append(names, ip.String())
	}
	if more := len(names) - 5; more > 0 {
		names = append(names[:5], fmt.Sprintf("%d more", more))
	}
	return names
}

// takes asks Kafka for the names of the logins that it accepts. It returns none if Kafka does not answer.
func (l *Login) takes(ctx context.Context) (known []string) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	opts := []kgo.Opt{kgo.SeedBrokers(l.brokers...)}
	if l.tls != nil {
		opts = append(opts, kgo.Dialer(l.tls.dial))
	}
	client, err := kgo.NewClient(opts...)
	if err != nil {
		return nil
	}
	defer client.Close()
	for _, seed := range client.SeedBrokers() {
		req := kmsg.NewPtrSASLHandshakeRequest()
		req.Mechanism = "?"
		if resp, err := seed.Request(ctx, req); err == nil {
			for _, m := range resp.(*kmsg.SASLHandshakeResponse).SupportedMechanisms {
				known = append(known, strings.ReplaceAll(strings.ToLower(m), "_", "-"))
			}
			break
		}
	}
	slices.Sort(known)
	return slices.Compact(known)
}

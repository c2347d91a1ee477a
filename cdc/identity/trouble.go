package identity

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/jackc/pgerrcode"
	"github.com/jackc/pgx/v5/pgconn"
)

// noTLS is the text of pgx's error for a server without TLS. notPostgres begins the text of its error for an answer
// that does not come from PostgreSQL. pgx has no names for these errors.
const (
	noTLS       = "server refused TLS connection"
	notPostgres = "unknown message type"
)

// Trouble returns what a connection's error means for identity and transport, and what to do: which certificate,
// authority or password is wrong, and on which side. It returns "" if the error is about something else. at is the
// server's address.
func (p *Postgres) Trouble(cfg *pgconn.Config, at string, err error) string {
	u, _ := parse(p.url)
	var pg *pgconn.PgError
	if errors.As(err, &pg) {
		return denied(cfg, u.source, u.files["passfile"], pg)
	}
	roots := u.files["sslrootcert"]
	if roots == "system" {
		roots = ""
	}
	if said := certificateTrouble("PostgreSQL at "+at, err, "sslrootcert", roots, ""); said != "" {
		return said
	}
	var record tls.RecordHeaderError
	var alert *net.OpError
	switch {
	case strings.Contains(err.Error(), noTLS):
		return fmt.Sprintf("PostgreSQL at %s takes no TLS: switch it on there (ssl = on), or write sslmode=disable in the URL, which sends password and rows in clear", at)
	case errors.As(err, &record):
		return fmt.Sprintf("%s does not answer as a server with TLS does: check that this is PostgreSQL's port, and leave sslnegotiation out unless it is PostgreSQL 17 or newer", at)
	case errors.As(err, &alert) && alert.Op == "remote error":
		return refusedOurs(cfg, at, alert.Err.Error())
	case strings.Contains(err.Error(), notPostgres):
		return fmt.Sprintf("%s does not answer as PostgreSQL does: check that this is PostgreSQL's port%s", at, alone(cfg))
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		return fmt.Sprintf("%s closes the connection before it answers: wait, if PostgreSQL is starting or stopping; otherwise check that this is PostgreSQL's port%s", at, alone(cfg))
	}
	return ""
}

// alone returns what to do if the port accepts only TLS; "" if the connection has used TLS.
func alone(cfg *pgconn.Config) string {
	if overTLS(cfg) {
		return ""
	}
	return "; if the port accepts only TLS, write sslmode=verify-full in place of disable"
}

// Explain returns the error of a connection with its meaning for identity and transport in front, if it has one. To an
// error about a missing right it adds that a service's migrate grants it.
func (p *Postgres) Explain(err error) error {
	var failed *pgconn.ConnectError
	if !errors.As(err, &failed) {
		if denied := (*pgconn.PgError)(nil); errors.As(err, &denied) && denied.Code == pgerrcode.InsufficientPrivilege {
			return fmt.Errorf("%w: the role of %s lacks a right: this program's command migrate gives it all that it needs", err, p.Key)
		}
		return err
	}
	at := net.JoinHostPort(failed.Config.Host, strconv.Itoa(int(failed.Config.Port)))
	if trouble := p.Trouble(failed.Config, at, failed); trouble != "" {
		return fmt.Errorf("%s: %s (%w)", p.Key, trouble, err)
	}
	return err
}

// refusedOurs returns the reason why the server ended the TLS handshake.
func refusedOurs(cfg *pgconn.Config, at, said string) string {
	said = strings.TrimPrefix(said, "tls: ")
	own := clients(cfg)
	if own == nil {
		return fmt.Sprintf("PostgreSQL at %s ends the TLS handshake (%s): it may want a client's certificate: name sslcert and sslkey", at, said)
	}
	return fmt.Sprintf("PostgreSQL at %s refuses the certificate of sslcert, %s by %s (%s), which expires at %s: have one issued by an authority of the server's ssl_ca_file, and look at the clocks", at, own.Subject, own.Issuer, said, own.NotAfter.UTC().Format(time.RFC3339))
}

// denied returns what a server's refusal means for our identity; "" if it is about something else. It compares the name
// of the server's routine, because messages can be translated and routines cannot.
func denied(cfg *pgconn.Config, from, passfile string, pg *pgconn.PgError) string {
	password := pg.Code == pgerrcode.InvalidPassword
	if !password && pg.Code != pgerrcode.InvalidAuthorizationSpecification {
		return ""
	}
	own := clients(cfg)
	switch {
	case pg.Routine == "auth_failed" && own != nil && own.Subject.CommonName != cfg.User:
		return fmt.Sprintf("the certificate of sslcert is for %q and the role is %q, which clientcert=verify-full and the method cert refuse: have one issued for the role, or write the role of the certificate in the URL; else the password is wrong", own.Subject.CommonName, cfg.User)
	case pg.Routine == "auth_failed" && from != "":
		more := ""
		if cfg.RuntimeParams["replication"] != "" {
			more = " and rds.iam_auth_for_replication = 1"
		}
		return fmt.Sprintf("the password or token of %s is wrong or has expired, as a token does after some minutes: %[1]s is read again at each attempt, so correct its result; to use a token, the role needs the right to do so (in RDS by GRANT rds_iam TO %s%s)", from, cfg.User, more)
	case pg.Routine == "auth_failed" && cfg.Password == "" && passfile != "":
		return fmt.Sprintf("no password was sent: no line of the file %s (passfile, PGPASSFILE) is for host %s, port %d, database %s and user %s: add HOST:PORT:DATABASE:USER:PASSWORD there", passfile, cfg.Host, cfg.Port, cfg.Database, cfg.User)
	case pg.Routine == "auth_failed" && !password && !onThisMachine(cfg.Host):
		return "the server asks another service to check the login (PAM, LDAP), or wants a token: if the password is a token, set password_command or password_file"
	case pg.Routine == "ClientAuthentication" && strings.Contains(pg.Message, "client certificate"):
		if own == nil {
			return "pg_hba.conf wants a client's certificate (clientcert): name sslcert and sslkey"
		}
		return fmt.Sprintf("the server takes no certificate of %s, which has issued that of sslcert: have one issued by an authority of the server's ssl_ca_file", own.Issuer)
	case pg.Routine == "ClientAuthentication" && cfg.TLSConfig == nil && !isSocket(cfg.Host):
		return fmt.Sprintf("pg_hba.conf does not let the role %s in from this host without TLS: where the server lets in over TLS alone (hostssl, rds.force_ssl), write sslmode=verify-full and sslrootcert=… in place of sslmode=disable; else add a line for it", cfg.User)
	}
	return ""
}

// clients returns the client's certificate; nil if there is none.
func clients(cfg *pgconn.Config) *x509.Certificate {
	for _, f := range all(cfg) {
		if f.TLSConfig != nil && len(f.TLSConfig.Certificates) > 0 {
			return f.TLSConfig.Certificates[0].Leaf
		}
	}
	return nil
}

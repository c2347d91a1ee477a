package notify

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	netmail "net/mail"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/wneessen/go-mail"

	"github.com/walpost/walpost/cdc/identity"
	"github.com/walpost/walpost/orders"
	"github.com/walpost/walpost/orders/notify/render"
)

// maxServerBytes limits what a mail server may send in one session; a normal session has some hundred bytes.
const maxServerBytes = 1 << 20

// MailConfig configures a Mail. Every field is required unless its comment says optional.
type MailConfig struct {
	identity.Unshown

	// URL of the server: smtp://user:password@host:587?starttls=required. starttls may also be optional or never.
	// smtps:// uses TLS from the first byte. User and password may be left out, and so may the ports 587 and 465.
	URL       string
	From      string // an address, or Name <address>
	Catalog   *Catalog
	Templates *render.Templates

	Timeout time.Duration // optional: the limit for each answer of the server; 0: 30 s
	TLS     *tls.Config   // optional
}

// Mail is the channel that sends over SMTP.
type Mail struct {
	identity.Unshown

	cfg             MailConfig
	host, port      string
	user, password  string
	implicit        bool
	policy          mail.TLSPolicy
	from, messageID string // messageID is the part of a Message-ID after the @
}

// NewMail checks cfg without connecting. The error lists every mistake in URL and From, and no password.
func NewMail(cfg MailConfig) (*Mail, error) {
	if cfg.Timeout == 0 {
		cfg.Timeout = 30 * time.Second
	}
	m := &Mail{cfg: cfg}
	urlErr := m.server(cfg.URL)
	if urlErr != nil {
		urlErr = fmt.Errorf("--smtp-url (ORDERS_SMTP_URL) %w; write it as in smtp://user:password@host:587?starttls=required", urlErr)
	}
	from, fromErr := netmail.ParseAddress(cfg.From)
	if fromErr != nil || !orders.PlainEmail(from.Address) {
		fromErr = errors.New("--mail-from (ORDERS_MAIL_FROM) is not an address: write it as in shop@shop.example, or Shop <shop@shop.example>")
	}
	if err := errors.Join(urlErr, fromErr); err != nil {
		return nil, err
	}
	m.from = from.String()
	_, m.messageID, _ = strings.Cut(from.Address, "@")
	return m, nil
}

func (m *Mail) server(text string) error {
	u, err := url.Parse(text)
	if err != nil { // the error of url.Parse quotes the whole URL, with the password
		return errors.New("is not a URL (a password's special characters are written as in %40)")
	}
	m.implicit = u.Scheme == "smtps"
	m.host, m.port, m.user = u.Hostname(), u.Port(), u.User.Username()
	m.password, _ = u.User.Password()
	if m.port == "" {
		m.port = map[bool]string{true: "465", false: "587"}[m.implicit]
	}
	policies := map[string]mail.TLSPolicy{"": mail.TLSMandatory, "required": mail.TLSMandatory, "optional": mail.TLSOpportunistic, "never": mail.NoTLS}
	var known bool
	if m.policy, known = policies[u.Query().Get("starttls")]; !known {
		return errors.New("has an unknown starttls: use required, optional or never")
	}
	number, err := strconv.ParseUint(m.port, 10, 16)
	switch {
	case text == "":
		return errors.New("is missing")
	case u.Scheme != "smtp" && !m.implicit:
		return errors.New("begins with neither smtp:// nor smtps://")
	case m.host == "":
		return errors.New("names no host")
	case err != nil || number == 0:
		return errors.New("has a port that is not a number from 1 to 65535")
	case u.Path != "" && u.Path != "/" || u.Fragment != "":
		return errors.New("has a path: remove it")
	case len(u.Query()) > 1 || len(u.Query()) == 1 && !u.Query().Has("starttls"):
		return errors.New("has a parameter other than starttls: remove it")
	case m.user != "" && m.password == "" || m.user == "" && m.password != "":
		return errors.New("has a user without a password, or a password without a user")
	case m.user != "" && !m.implicit && m.policy == mail.NoTLS:
		return errors.New("would send the password without encryption: use starttls=required")
	}
	return nil
}

func (m *Mail) name() string { return ChannelMail }

// prepare renders the mail once. A later attempt sends the stored mail, even if a product has another name by then.
func (m *Mail) prepare(ctx context.Context, n *task) error {
	if !orders.PlainEmail(n.Recipient) {
		return errors.New(badAddress)
	}
	if n.Subject != "" {
		return nil
	}
	var ev event
	if err := versions.Decode(eventTypes[n.Kind], n.event, &ev); err != nil {
		return fmt.Errorf("the event cannot be read any more: %w", err)
	}
	skus := make([]string, len(ev.Items))
	for i, item := range ev.Items {
		skus[i] = item.SKU
	}
	products, err := m.cfg.Catalog.products(ctx, skus)
	if err != nil {
		return err
	}
	written := render.Mail{
		Kind: n.Kind, Language: n.Language, OrderID: ev.OrderID.String(), Number: ev.OrderNumber, Total: ev.TotalAmount, Currency: ev.Currency,
		TrackingCode: ev.TrackingCode,
	}
	for _, item := range ev.Items {
		line := render.Line{SKU: item.SKU, Name: item.SKU, Quantity: item.Quantity, UnitPrice: item.UnitPrice}
		if p, described := products[item.SKU]; described {
			line.Name, line.Picture = p.name, p.picture
		}
		for _, short := range ev.Short {
			if short.SKU == item.SKU {
				line.Available = &short.Available
			}
		}
		written.Lines = append(written.Lines, line)
	}
	rendered, err := m.cfg.Templates.Render(written)
	if err != nil {
		return fmt.Errorf("it cannot be rendered: %w", err)
	}
	n.Subject, n.Text = rendered.Subject, rendered.Text
	if n.Format == "html" {
		n.HTML = rendered.HTML
	}
	return nil
}

// deliver opens a session with the server for this mail. The server's 250 to the mail is success, also if an error follows.
func (m *Mail) deliver(ctx context.Context, n *task) (string, error) {
	msg, err := m.message(n)
	if err != nil {
		return "", &refusal{fmt.Errorf("the mail cannot be written: %w", err)}
	}
	dial, hangUp := m.dialer(ctx)
	defer hangUp()
	options := []mail.Option{
		mail.WithTLSPolicy(m.policy), mail.WithTimeout(m.cfg.Timeout), mail.WithDialContextFunc(dial), mail.WithoutNoop(), mail.WithoutRset(),
		mail.WithTLSConfig(m.tls()),
	}
	if m.user != "" {
		options = append(options, mail.WithUsername(m.user), mail.WithPassword(m.password),
			mail.WithOpportunisticSMTPAuth(mail.SMTPAuthSCRAMSHA256, mail.SMTPAuthSCRAMSHA1, mail.SMTPAuthPlain, mail.SMTPAuthLogin)) // PLAIN and LOGIN over TLS only
	}
	if m.implicit {
		options = append(options, mail.WithSSL()) // the dialer does TLS; this option keeps the library from asking for STARTTLS
	}
	client, err := mail.NewClient(m.host, options...)
	if err != nil {
		return "", fmt.Errorf("configure the session: %w", err)
	}
	err = session(ctx, client, msg)
	if msg.IsDelivered() {
		return m.scrub("250 " + msg.ServerResponse()), nil
	}
	if err == nil {
		err = errors.New("the session ended without an answer to the mail")
	}
	text, _, _ := strings.Cut(strings.TrimPrefix(err.Error(), "send failed: "), ", affected ") // the rest repeats facts that we have
	said := errors.New(m.scrub(text))
	if sent := (*mail.SendError)(nil); errors.As(err, &sent) && sent.ErrorCode()/100 == 5 {
		return "", &refusal{said}
	}
	return "", said
}

// session turns a panic of the library over an answer of the server into an error: such an answer violates the
// protocol.
func session(ctx context.Context, client *mail.Client, msg *mail.Msg) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("the server's answer is out of protocol: %v", p)
		}
	}()
	return client.DialAndSendWithContext(ctx, msg)
}

func (m *Mail) message(n *task) (*mail.Msg, error) {
	msg := mail.NewMsg(mail.WithNoDefaultUserAgent())
	if err := errors.Join(msg.From(m.from), msg.To(n.Recipient)); err != nil {
		return nil, err
	}
	msg.Subject(n.Subject)
	msg.SetDateWithValue(n.CreatedAt)
	msg.SetMessageIDWithValue(fmt.Sprintf("%s.%s@%s", n.OrderID, n.Kind, m.messageID)) // the same at every attempt
	msg.SetGenHeader("X-Event-Id", n.EventID.String())
	msg.SetGenHeader("Auto-Submitted", "auto-generated")
	msg.SetBodyString(mail.TypeTextPlain, n.Text)
	if n.HTML != "" {
		msg.AddAlternativeString(mail.TypeTextHTML, n.HTML)
	}
	return msg, nil
}

func (m *Mail) tls() *tls.Config {
	config := &tls.Config{MinVersion: tls.VersionTLS12}
	if m.cfg.TLS != nil {
		config = m.cfg.TLS.Clone()
	}
	config.ServerName = m.host
	return config
}

// dialer returns a dial function whose connection ends with ctx in every case, and a function that closes the
// connection, which the library may leave open.
func (m *Mail) dialer(ctx context.Context) (dial mail.DialContextFunc, hangUp func()) {
	var conn net.Conn
	stop := func() bool { return true }
	dial = func(dialCtx context.Context, _, _ string) (net.Conn, error) {
		dialer := net.Dialer{Timeout: m.cfg.Timeout}
		plain, err := dialer.DialContext(dialCtx, "tcp", net.JoinHostPort(m.host, m.port))
		if err != nil {
			return nil, err
		}
		conn = plain
		stop = context.AfterFunc(ctx, func() { _ = plain.Close() })
		var limited net.Conn = &limitedConn{plain, io.LimitReader(plain, maxServerBytes)}
		if !m.implicit {
			return limited, nil
		}
		secure := tls.Client(limited, m.tls())
		return secure, secure.HandshakeContext(dialCtx)
	}
	return dial, func() {
		if stop(); conn != nil {
			_ = conn.Close()
		}
	}
}

// limitedConn is a connection that ends after the server has sent too many bytes.
type limitedConn struct {
	net.Conn
	limited io.Reader
}

func (c *limitedConn) Read(b []byte) (int, error) { return c.limited.Read(b) }

// scrub removes the password from a text that will be stored, because a server may repeat the password.
func (m *Mail) scrub(text string) string {
	return identity.Secret(m.password).Scrub(text, m.user)
}

package notify_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http/httptest"
	"net/mail"
	"net/url"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/emersion/go-sasl"
	"github.com/emersion/go-smtp"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"

	"github.com/walpost/walpost/cdc/cdctest"
	"github.com/walpost/walpost/cdc/inbox"
	"github.com/walpost/walpost/orders/notify"
	"github.com/walpost/walpost/orders/notify/render"
	"github.com/walpost/walpost/sql"
)

// TestMain is also the process that the kill test kills.
func TestMain(m *testing.M) {
	if os.Getenv("NOTIFY_TEST_SENDER") != "" {
		sendAsChild()
		return
	}
	cdctest.Main(m)
}

// shop is an orders and an inventory database, with the rights of the services there.
type shop struct {
	*testing.T
	owner      *pgxpool.Pool // of the orders database
	store      *notify.Store
	serviceURL string
	catalogURL string
	inventory  *pgxpool.Pool
	log        *cdctest.Log
	registry   *prometheus.Registry
	metrics    *notify.Metrics
}

func open(t *testing.T) *shop {
	t.Helper()
	orders, inventory := cdctest.Database(t), cdctest.Database(t)
	as := func(admin, role string) string { return cdctest.As(admin, role) }
	s := &shop{T: t, serviceURL: as(orders, "orders_service"), catalogURL: as(inventory, "inventory_reader"), log: &cdctest.Log{}, registry: prometheus.NewRegistry()}
	cdctest.AlterRoles(t, func() error {
		return errors.Join(
			sql.Migrate(t.Context(), sql.Orders, orders, s.serviceURL, io.Discard),
			sql.Migrate(t.Context(), sql.Inventory, inventory, as(inventory, "inventory_service"), io.Discard),
			sql.GrantReader(t.Context(), inventory, as(inventory, "inventory_service"), s.catalogURL, io.Discard))
	})
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(s.log.String())
		}
	})
	s.owner, s.inventory = pool(t, orders), pool(t, inventory)
	s.store = notify.NewStore(pool(t, s.serviceURL))
	s.metrics = notify.NewMetrics(s.registry, s.store)
	s.exec(s.inventory, `INSERT INTO products (sku, name, picture_url) VALUES ('TEA-100', 'Green tea', 'https://shop.example/tea.jpg')`)
	return s
}

func pool(t *testing.T, url string) *pgxpool.Pool {
	t.Helper()
	p, err := pgxpool.New(context.Background(), url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	return p
}

func (s *shop) exec(p *pgxpool.Pool, statement string, args ...any) {
	s.Helper()
	if _, err := p.Exec(s.Context(), statement, args...); err != nil {
		s.Fatalf("%s: %v", statement, err)
	}
}

func scan[T any](s *shop, query string, args ...any) T {
	s.Helper()
	rows, _ := s.owner.Query(s.Context(), query, args...)
	v, err := pgx.CollectExactlyOneRow(rows, pgx.RowTo[T])
	if err != nil {
		s.Fatalf("%s: %v", query, err)
	}
	return v
}

// order places an order and returns its id.
func (s *shop) order() uuid.UUID {
	s.Helper()
	return scan[uuid.UUID](s, `SELECT create_order('buyer-7', 'ada@shop.example', '[{"sku": "TEA-100", "quantity": 2, "unitPrice": "19.90"}, {"sku": "CUP.white", "quantity": 1, "unitPrice": "5"}]')`)
}

// event returns an order event as the inbox delivers it, with the fields of change replaced.
func event(eventType string, order uuid.UUID, change map[string]any) inbox.Event {
	id := uuid.Must(uuid.NewV7()).String()
	fields := map[string]any{
		"eventId": id, "eventType": eventType, "schemaVersion": 1, "occurredAt": "2026-01-02T03:06:05.120000Z", "orderId": order, "orderNumber": "100001",
		"buyerId": "buyer-7", "buyerEmail": "ada@shop.example", "totalAmount": "44.80", "currency": "EUR", "aFieldOfTomorrow": []int{1},
		"items": []any{map[string]any{"sku": "TEA-100", "quantity": 2, "unitPrice": "19.90"}, map[string]any{"sku": "CUP.white", "quantity": 1, "unitPrice": "5.00"}},
	}
	switch eventType {
	case "OrderShipped":
		fields["trackingCode"] = "JD0146"
	case "OrderRejected":
		fields["reason"], fields["short"] = "out_of_stock", []any{map[string]any{"sku": "TEA-100", "requested": 2, "available": 1}}
	}
	maps.Copy(fields, change)
	value, err := json.Marshal(fields)
	if err != nil {
		panic(err)
	}
	return inbox.Event{ID: id, Type: eventType, Key: []byte(order.String()), Value: value}
}

// take gives the event to a channel's handler, in a transaction as the inbox does.
func (s *shop) take(channel string, ev inbox.Event) error {
	s.Helper()
	handle := s.store.Inbox(channel, "https://partner.example/orders").Handle
	return pgx.BeginFunc(s.Context(), pool(s.T, s.serviceURL), func(tx pgx.Tx) error { return handle(s.Context(), tx, ev) })
}

// mail makes a new order with a mail about it.
func (s *shop) mail(eventType string, change map[string]any) uuid.UUID {
	s.Helper()
	order := s.order()
	if err := s.take("mail", event(eventType, order, change)); err != nil {
		s.Fatal(err)
	}
	return order
}

func (s *shop) one(channel string, order uuid.UUID) notify.Notification {
	s.Helper()
	list, err := s.store.ByOrder(s.Context(), channel, order)
	if err != nil || len(list) != 1 {
		s.Fatalf("%d notifications of order %s: %v", len(list), order, err)
	}
	return list[0]
}

// until waits until the order's only notification has a status.
func (s *shop) until(channel string, order uuid.UUID, status string) notify.Notification {
	s.Helper()
	var n notify.Notification
	cdctest.Eventually(s, time.Minute, func() error {
		if n = s.one(channel, order); n.Status != status {
			return fmt.Errorf("it is %s and not %s: %s, %+v", n.Status, status, n.Reason, n.History)
		}
		return nil
	})
	return n
}

// outcomes returns the outcomes of the attempts, in order.
func outcomes(n notify.Notification) string {
	var all []string
	for _, a := range n.History {
		all = append(all, a.Outcome)
	}
	return strings.Join(all, " ")
}

// channel returns the mail channel over the server, with a catalog.
func (s *shop) channel(server string, change ...func(*notify.MailConfig)) *notify.Mail {
	s.Helper()
	catalog, err := notify.OpenCatalog(context.Background(), cdctest.PoolConfig(s, s.catalogURL))
	if err != nil {
		s.Fatal(err)
	}
	s.Cleanup(catalog.Close)
	templates, err := render.Parse(render.BuiltIn())
	if err != nil {
		s.Fatal(err)
	}
	cfg := notify.MailConfig{URL: server, From: "Shop <shop@shop.example>", Catalog: catalog, Templates: templates}
	for _, f := range change {
		f(&cfg)
	}
	m, err := notify.NewMail(cfg)
	if err != nil {
		s.Fatal(err)
	}
	return m
}

// send runs a sender until the returned function or the test ends it.
func (s *shop) send(c notify.Channel, change ...func(*notify.SenderConfig)) (stop func()) {
	s.Helper()
	cfg := notify.SenderConfig{Store: s.store, Channel: c, Metrics: s.metrics, Log: zerolog.New(s.log), Backoff: 10 * time.Millisecond, RetryEvery: time.Hour}
	for _, f := range change {
		f(&cfg)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- notify.NewSender(cfg).Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			s.Errorf("sender: %v", err)
		}
	})
	s.Cleanup(stop)
	return stop
}

// mailServer is a real server on loopback. It answers as configured and keeps the mails that it accepted.
type mailServer struct {
	url string
	tls *tls.Config // for the client, to trust it

	silent bool // a test expects that it may never answer
	smtps  bool // TLS from the first byte

	mu       sync.Mutex
	taken    []letter
	sessions int
	rcpt     func(n int) error      // the answer to the nth recipient, over all sessions
	data     func(l letter) error   // the answer to a mail
	breaks   func(n int) (cut bool) // whether the connection breaks at the nth DATA
	rcpts    int
	datas    int
	login    string // user:password; empty: no login is needed
}

// letter is a mail as it arrived.
type letter struct {
	to      string
	message *mail.Message
	body    string
}

// startMailServer starts a server on address, or on a free one.
func startMailServer(t *testing.T, address string, change func(*mailServer)) *mailServer {
	t.Helper()
	m := &mailServer{}
	change(m)
	certified := httptest.NewUnstartedServer(nil) // for its certificate only
	certified.StartTLS()
	certificates, pool := certified.TLS.Certificates, x509.NewCertPool()
	pool.AddCert(certified.Certificate())
	certified.Close()
	m.tls = &tls.Config{RootCAs: pool}
	server := smtp.NewServer(smtp.BackendFunc(func(c *smtp.Conn) (smtp.Session, error) {
		m.mu.Lock()
		m.sessions++
		m.mu.Unlock()
		return &session{m, c, m.login == "", ""}, nil
	}))
	server.TLSConfig = &tls.Config{Certificates: certificates}
	server.ErrorLog = nothing{}
	ln, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan struct{})
	if m.smtps {
		ln = tls.NewListener(ln, server.TLSConfig)
	}
	go func() {
		defer close(served)
		_ = server.Serve(ln)
	}()
	t.Cleanup(func() {
		_ = server.Close()
		<-served
	})
	m.url = "smtp://" + ln.Addr().String() + "?starttls=never"
	if m.smtps {
		m.url = "smtps://" + ln.Addr().String()
	}
	return m
}

type nothing struct{}

func (nothing) Printf(string, ...any) {}
func (nothing) Println(...any)        {}

func (m *mailServer) all() []letter {
	m.mu.Lock()
	defer m.mu.Unlock()
	return append([]letter(nil), m.taken...)
}

type session struct {
	m  *mailServer
	c  *smtp.Conn
	in bool
	to string
}

func (s *session) AuthMechanisms() []string { return []string{sasl.Plain} }

func (s *session) Auth(string) (sasl.Server, error) {
	return sasl.NewPlainServer(func(_, user, password string) error {
		if s.in = user+":"+password == s.m.login; !s.in {
			return &smtp.SMTPError{Code: 535, EnhancedCode: smtp.EnhancedCode{5, 7, 8}, Message: "not " + password + ", that is " + user}
		}
		return nil
	}), nil
}

func (s *session) Mail(string, *smtp.MailOptions) error {
	if !s.in {
		return smtp.ErrAuthRequired
	}
	return nil
}

func (s *session) Rcpt(to string, _ *smtp.RcptOptions) error {
	s.m.mu.Lock()
	defer s.m.mu.Unlock()
	s.to = to
	if s.m.rcpts++; s.m.rcpt != nil {
		return s.m.rcpt(s.m.rcpts)
	}
	return nil
}

func (s *session) Data(r io.Reader) error {
	s.m.mu.Lock()
	s.m.datas++
	n := s.m.datas
	s.m.mu.Unlock()
	if s.m.breaks != nil && s.m.breaks(n) {
		_, _ = io.CopyN(io.Discard, r, 10)
		return s.c.Conn().Close()
	}
	message, err := mail.ReadMessage(r)
	if err != nil {
		return err
	}
	body, err := io.ReadAll(message.Body)
	if err != nil {
		return err
	}
	l := letter{s.to, message, string(body)}
	if s.m.data != nil {
		if err := s.m.data(l); err != nil {
			return err
		}
	}
	s.m.mu.Lock()
	defer s.m.mu.Unlock()
	s.m.taken = append(s.m.taken, l)
	return nil
}

func (s *session) Reset()        {}
func (s *session) Logout() error { return nil }

// talker starts a server that writes one text to each client, and then nothing until the client disconnects.
func talker(t *testing.T, says string) (server string) {
	return listen(t, func(conn net.Conn) {
		_, _ = io.WriteString(conn, says)
		_, _ = io.Copy(io.Discard, conn)
	})
}

// conversation starts a server that answers each command from the map, or with 250; for an empty answer it disconnects.
func conversation(t *testing.T, answers map[string]string) (server string) {
	return listen(t, func(conn net.Conn) {
		_, _ = io.WriteString(conn, "220 hello\r\n")
		var writing bool
		for lines := bufio.NewScanner(conn); lines.Scan(); {
			command, _, _ := strings.Cut(lines.Text(), " ")
			if writing && command != "." {
				continue
			}
			answer, told := answers[command]
			if !told {
				answer = "250 fine"
			}
			if answer == "" {
				return
			}
			writing = strings.HasPrefix(answer, "354")
			_, _ = io.WriteString(conn, answer+"\r\n")
		}
	})
}

func listen(t *testing.T, talk func(net.Conn)) (server string) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var talks sync.WaitGroup
	talks.Go(func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			talks.Go(func() {
				defer conn.Close()
				talk(conn)
			})
		}
	})
	t.Cleanup(func() {
		_ = ln.Close()
		talks.Wait()
	})
	return "smtp://" + ln.Addr().String() + "?starttls=never"
}

// nobody returns the URL of a server that does not exist.
func nobody(t *testing.T) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	return "smtp://" + ln.Addr().String() + "?starttls=never"
}

func as(user, password, server, starttls string) string {
	u, err := url.Parse(server)
	if err != nil {
		panic(err)
	}
	if u.User = url.UserPassword(user, password); starttls != "" {
		u.RawQuery = "starttls=" + starttls
	}
	return u.String()
}

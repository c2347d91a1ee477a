package notify_test

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"mime"
	"mime/multipart"
	"mime/quotedprintable"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"syscall"
	"testing"
	"testing/fstest"
	"time"

	"github.com/emersion/go-smtp"
	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/walpost/walpost/cdc/cdctest"
	"github.com/walpost/walpost/orders/notify"
	"github.com/walpost/walpost/orders/notify/render"
)

// parts returns the texts of a mail, by media type.
func parts(t *testing.T, l letter) map[string]string {
	t.Helper()
	kind, params, err := mime.ParseMediaType(l.message.Header.Get("Content-Type"))
	if err != nil {
		t.Fatal(err)
	}
	if kind != "multipart/alternative" {
		text, err := io.ReadAll(quotedprintable.NewReader(strings.NewReader(l.body)))
		if err != nil {
			t.Fatal(err)
		}
		return map[string]string{kind: string(text)}
	}
	found := map[string]string{}
	for r := multipart.NewReader(strings.NewReader(l.body), params["boundary"]); ; {
		p, err := r.NextPart() // which decodes quoted-printable
		if errors.Is(err, io.EOF) {
			return found
		}
		if err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(p)
		if err != nil {
			t.Fatal(err)
		}
		kind, _, _ := mime.ParseMediaType(p.Header.Get("Content-Type"))
		found[kind] = string(text)
	}
}

// The consumer writes a row and talks to no server; the sender sends the mail, over STARTTLS and with a password.
func TestAMailIsWrittenFirstAndSentThen(t *testing.T) {
	t.Parallel()
	s := open(t)
	server := startMailServer(t, "127.0.0.1:0", func(m *mailServer) { m.login = "shop:s3cret+" })
	channel := s.channel(as("shop", "s3cret+", server.url, "required"), func(c *notify.MailConfig) { c.TLS = server.tls })
	order := s.order()
	shipped := event("OrderShipped", order, nil)
	if err := s.take("mail", shipped); err != nil {
		t.Fatal(err)
	}
	if n := s.one("mail", order); n.Status != notify.Pending || n.Attempts != 0 || n.EventID.String() != shipped.ID || server.sessions != 0 {
		t.Fatalf("before anybody sends it: %+v, and %d sessions with the mail server", n, server.sessions)
	}
	stop := s.send(channel)
	n := s.until("mail", order, notify.Sent)
	stop()

	got := server.all()
	if len(got) != 1 || got[0].to != "ada@shop.example" {
		t.Fatalf("the server took %+v", got)
	}
	header := got[0].message.Header
	if header.Get("X-Event-Id") != shipped.ID || !strings.HasPrefix(header.Get("Message-Id"), "<"+order.String()+".shipped@") || header.Get("Subject") != n.Subject {
		t.Errorf("header %v", header)
	}
	texts := parts(t, got[0])
	for kind, kept := range map[string]string{"text/html": n.HTML, "text/plain": n.Text} {
		text := strings.ReplaceAll(texts[kind], "\r\n", "\n")
		if strings.TrimSpace(text) != strings.TrimSpace(kept) || kept == "" {
			t.Errorf("%s was sent as\n%s\nand is kept as\n%s", kind, text, kept)
		}
		for _, want := range []string{"100001", "Green tea", "CUP.white", "44.80 EUR", "JD0146"} {
			if !strings.Contains(text, want) {
				t.Errorf("no %q in the %s:\n%s", want, kind, text)
			}
		}
	}
	if !strings.Contains(n.HTML, `src="https://shop.example/tea.jpg"`) {
		t.Errorf("no picture in\n%s", n.HTML)
	}
	if outcomes(n) != "sent" || n.History[0].Recipient != "ada@shop.example" || !strings.HasPrefix(n.History[0].Answer, "250 ") || n.History[0].EndedAt == nil {
		t.Errorf("attempts %+v", n.History)
	}

	// The same event, another event of this kind, re-publishing, and an UPDATE by hand: none of them sends the mail
	// again.
	for _, again := range []error{s.take("mail", shipped), s.take("mail", event("OrderShipped", order, nil))} {
		if again != nil {
			t.Error(again)
		}
	}
	if done, err := s.store.Republish(t.Context(), notify.RepublishOptions{Channel: "mail", Since: epoch, Limit: 10}); done != 0 || err != nil {
		t.Errorf("%d re-published after success: %v", done, err)
	}
	if _, err := s.owner.Exec(t.Context(), `UPDATE notifications SET status = 'PENDING', ended_at = NULL`); err == nil || !strings.Contains(err.Error(), "is sent and stays so") {
		t.Errorf("a sent mail was made PENDING by hand: %v", err)
	}
	if n := s.one("mail", order); n.Status != notify.Sent || n.EventID.String() != shipped.ID {
		t.Errorf("after all that: %+v", n)
	}
}

func TestWhatServersDo(t *testing.T) {
	cdctest.Long(t, "waits for mail servers")
	t.Parallel()
	s := open(t)
	no := func(code int, text string) error { return &smtp.SMTPError{Code: code, Message: text} }
	real := func(change func(*mailServer)) func(*testing.T) *mailServer {
		return func(t *testing.T) *mailServer { return startMailServer(t, "127.0.0.1:0", change) }
	}
	says := func(text string) func(*testing.T) *mailServer {
		return func(t *testing.T) *mailServer { return &mailServer{url: talker(t, text)} }
	}
	stalls := func(text string) func(*testing.T) *mailServer {
		return func(t *testing.T) *mailServer { return &mailServer{url: talker(t, text), silent: true} }
	}
	talks := func(answers map[string]string) func(*testing.T) *mailServer {
		return func(t *testing.T) *mailServer { return &mailServer{url: conversation(t, answers)} }
	}
	const five = "deferred deferred deferred deferred deferred"
	for name, c := range map[string]struct {
		server   func(*testing.T) *mailServer
		url      func(string) string
		status   string
		outcomes string
		answer   string // of the last attempt
		taken    int
	}{
		"refuses the recipient": {real(func(m *mailServer) { m.rcpt = func(int) error { return no(550, "no such user") } }), nil, notify.Failed, "refused", "550", 0},
		"refuses the mail":      {real(func(m *mailServer) { m.data = func(letter) error { return no(554, "this is spam") } }), nil, notify.Failed, "refused", "554", 0},
		"greylists": {real(func(m *mailServer) {
			m.rcpt = func(n int) error {
				if n <= 2 {
					return no(451, "come back")
				}
				return nil
			}
		}), nil, notify.Sent, "deferred deferred sent", "250", 1},
		"is always busy":              {real(func(m *mailServer) { m.data = func(letter) error { return no(452, "disk full") } }), nil, notify.Failed, five, "452", 0},
		"drops the connection, once":  {real(func(m *mailServer) { m.breaks = func(n int) bool { return n == 1 } }), nil, notify.Sent, "deferred sent", "250", 1},
		"does not exist":              {func(t *testing.T) *mailServer { return &mailServer{url: nobody(t)} }, nil, notify.Failed, five, "refused", 0},
		"stalls":                      {stalls(""), nil, notify.Failed, five, "timeout", 0},
		"stalls after the greeting":   {stalls("220 hello\r\n"), nil, notify.Failed, five, "timeout", 0},
		"greets with a refusal":       {says("554 not you\r\n"), nil, notify.Failed, five, "not you", 0},
		"speaks HTTP":                 {says("HTTP/1.1 400 Bad Request\r\n\r\n"), nil, notify.Failed, five, "HTTP", 0},
		"says half a code":            {says("5\r\n5\r\n5\r\n"), nil, notify.Failed, five, "5", 0},
		"says empty lines":            {says("\r\n\r\n"), nil, notify.Failed, five, "", 0},
		"says bytes":                  {stalls("220 \x00\xff\x1b[2J\r\n250\x00\r\n"), nil, notify.Failed, five, "", 0},
		"never ends a line":           {says(strings.Repeat("2", 2<<20)), nil, notify.Failed, five, "EOF", 0},
		"answers everything with 250": {says(strings.Repeat("250 fine\r\n", 100)), nil, notify.Failed, five, "250", 0},
		"hangs up after the 250":      {talks(map[string]string{"DATA": "354 go on", ".": "250 queued", "QUIT": ""}), nil, notify.Sent, "sent", "250 queued", 0},
		"knows no code":               {talks(map[string]string{"DATA": "354 go on", ".": "999 anything"}), nil, notify.Failed, five, "999", 0},
		"continues after the end":     {talks(map[string]string{"DATA": "250 go on"}), nil, notify.Failed, five, "250", 0},
		"wants another password": {
			real(func(m *mailServer) { m.login = "shop:right" }), func(u string) string { return as("shop", "wr0ng@pass", u, "required") },
			notify.Failed, five, "not ***, that is shop", 0,
		},
		"speaks TLS from the first byte": {
			real(func(m *mailServer) { m.login, m.smtps = "shop:wr0ng@pass", true }), func(u string) string { return as("shop", "wr0ng@pass", u, "") },
			notify.Sent, "sent", "250", 1,
		},
		"has no certificate we trust": {
			real(func(m *mailServer) { m.tls = nil }), func(u string) string {
				return strings.Replace(strings.Replace(u, "never", "required", 1), "127.0.0.1", "localhost", 1)
			},
			notify.Failed, five, "certificate", 0,
		},
		"has no STARTTLS, which is required": {
			says("220 hello\r\n250 hello\r\n"), func(u string) string { return strings.Replace(u, "never", "required", 1) },
			notify.Failed, five, "STARTTLS", 0,
		},
	} {
		t.Run(name, func(t *testing.T) {
			server := c.server(t)
			at := server.url
			if c.url != nil {
				at = c.url(at)
			}
			order := s.mail("OrderConfirmed", nil)
			stop := s.send(s.channel(at, func(cfg *notify.MailConfig) {
				if cfg.TLS = server.tls; server.silent {
					cfg.Timeout = 50 * time.Millisecond
				}
			}))
			n := s.until("mail", order, c.status)
			stop()
			if outcomes(n) != c.outcomes || n.Attempts != len(n.History) || len(server.all()) != c.taken {
				t.Errorf("attempts %q, want %q; the server took %d, want %d: %+v", outcomes(n), c.outcomes, len(server.all()), c.taken, n.History)
			}
			if last := n.History[len(n.History)-1].Answer; !strings.Contains(last, c.answer) || last == "" || strings.ContainsAny(last, "\r\n\x00\x1b") {
				t.Errorf("answer %q, want %q in it", last, c.answer)
			}
			if c.status == notify.Failed && !strings.Contains(n.Reason, c.answer) {
				t.Errorf("reason %q, want %q in it", n.Reason, c.answer)
			}
		})
	}
	everything := s.log.String() + scan[string](s, `SELECT string_agg(n::text || a::text, '') FROM notifications n JOIN notification_attempts a ON a.notification_id = n.id`)
	for _, secret := range []string{"wr0ng", "wr0ng%40pass", base64.StdEncoding.EncodeToString([]byte("\x00shop\x00wr0ng@pass"))} {
		if strings.Contains(everything, secret) {
			t.Errorf("%q is in the log or in the database", secret)
		}
	}
	if strings.Contains(s.log.String(), "ada@") {
		t.Errorf("an address is in the log")
	}
}

func TestTwoSendersNeverSendOneMailTwice(t *testing.T) {
	t.Parallel()
	s := open(t)
	server := startMailServer(t, "127.0.0.1:0", func(m *mailServer) {
		m.data = func(letter) error {
			time.Sleep(10 * time.Millisecond) // so that the other sender may lease it
			return nil
		}
	})
	const mails = 30
	for range mails {
		s.mail("OrderConfirmed", nil)
	}
	for range 2 {
		s.send(s.channel(server.url))
	}
	cdctest.Eventually(t, time.Minute, func() error {
		if n := scan[int](s, `SELECT count(*)::int FROM notifications WHERE status = 'SENT'`); n != mails {
			return fmt.Errorf("%d of %d are SENT", n, mails)
		}
		return nil
	})
	seen := map[string]int{}
	for _, l := range server.all() {
		seen[l.message.Header.Get("Message-Id")]++
	}
	if len(seen) != mails || len(server.all()) != mails {
		t.Errorf("%d mails with %d ids arrived, want %d", len(server.all()), len(seen), mails)
	}
	if n := scan[int](s, `SELECT count(*)::int FROM notification_attempts`); n != mails {
		t.Errorf("%d attempts", n)
	}
}

// The wait between two attempts is random, around a value that doubles.
func TestAttemptsKeepTheirDistance(t *testing.T) {
	t.Parallel()
	s := open(t)
	down := nobody(t)
	seen := map[time.Duration]bool{}
	for made, about := range []time.Duration{time.Hour, 2 * time.Hour, 4 * time.Hour, 8 * time.Hour} {
		for range 3 {
			order := s.mail("OrderConfirmed", nil)
			s.exec(s.owner, `UPDATE notifications SET attempts = $2 WHERE order_id = $1`, order, made)
			stop := s.send(s.channel(down), func(c *notify.SenderConfig) { c.Backoff = time.Hour })
			var n notify.Notification
			cdctest.Eventually(t, time.Minute, func() error {
				if n = s.one("mail", order); outcomes(n) != "deferred" {
					return fmt.Errorf("no attempt yet: %+v", n)
				}
				return nil
			})
			stop()
			wait := n.NextAttempt.Sub(*n.History[0].EndedAt)
			if seen[wait] = true; wait < about/2 || wait > about*3/2+time.Second || n.Attempts != made+1 {
				t.Errorf("after attempt %d it waits %v, want about %v", n.Attempts, wait, about)
			}
		}
	}
	if len(seen) < 12 {
		t.Errorf("the waits are not random: %v", seen)
	}
}

// A sender was frozen until its lease went to another one: a mail that it sent is SENT, and a mail that it did not send
// belongs to the other.
func TestASenderThatLostItsLease(t *testing.T) {
	t.Parallel()
	s := open(t)
	var answer error
	server := startMailServer(t, "127.0.0.1:0", func(m *mailServer) {
		m.data = func(letter) error {
			if _, err := s.owner.Exec(context.Background(), `UPDATE notifications SET lease_owner = 'another' WHERE status = 'PENDING'`); err != nil {
				t.Error(err)
			}
			return answer
		}
	})
	order := s.mail("OrderConfirmed", nil)
	stop := s.send(s.channel(server.url))
	s.until("mail", order, notify.Sent)
	stop()
	answer = &smtp.SMTPError{Code: 554, Message: "no"}
	order = s.mail("OrderConfirmed", nil)
	stop = s.send(s.channel(server.url))
	cdctest.Eventually(t, time.Minute, func() error {
		if n := s.one("mail", order); outcomes(n) != "refused" {
			return fmt.Errorf("no attempt yet: %+v", n)
		}
		return nil
	})
	stop()
	if owner := scan[string](s, `SELECT status || ' of ' || lease_owner FROM notifications WHERE order_id = $1`, order); owner != "PENDING of another" {
		t.Errorf("it is %s", owner)
	}
}

// A sender that dies in the last attempt, again and again, does not get a sixth attempt.
func TestAttemptsThatNobodyEndedCount(t *testing.T) {
	t.Parallel()
	s := open(t)
	server := startMailServer(t, "127.0.0.1:0", func(*mailServer) {})
	order := s.mail("OrderConfirmed", nil)
	s.exec(s.owner, `UPDATE notifications SET attempts = 5, lease_owner = 'gone', lease_until = clock_timestamp()`)
	s.send(s.channel(server.url))
	if n := s.until("mail", order, notify.Failed); !strings.Contains(n.Reason, "whether it arrived is unknown") || len(server.all()) != 0 {
		t.Errorf("%d mails, %+v", len(server.all()), n)
	}
}

// sendAsChild runs a sender in a separate process.
func sendAsChild() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	fail := func(err error) {
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
	pool, err := pgxpool.New(ctx, os.Getenv("NOTIFY_TEST_DATABASE"))
	fail(err)
	names, err := pgxpool.ParseConfig(os.Getenv("NOTIFY_TEST_CATALOG"))
	fail(err)
	catalog, err := notify.OpenCatalog(ctx, names)
	fail(err)
	templates, err := render.Parse(render.BuiltIn())
	fail(err)
	channel, err := notify.NewMail(notify.MailConfig{URL: os.Getenv("NOTIFY_TEST_SENDER"), From: "shop@shop.example", Catalog: catalog, Templates: templates})
	fail(err)
	store := notify.NewStore(pool)
	fail(notify.NewSender(notify.SenderConfig{
		Store: store, Channel: channel, Metrics: notify.NewMetrics(prometheus.NewRegistry(), store), Log: zerolog.New(os.Stderr), Lease: 4 * time.Second,
	}).Run(ctx))
}

// The sender is killed between the server's 250 and its own COMMIT. The mail is sent once more, under the same
// Message-ID, and the attempt without an outcome stays visible.
func TestKilledBetweenTheServersAnswerAndOurCommit(t *testing.T) {
	cdctest.Long(t, "kills a sender again and again")
	t.Parallel()
	s := open(t)
	order := s.mail("OrderConfirmed", nil)
	held := make(chan struct{})
	release := make(chan struct{})
	var once int
	server := startMailServer(t, "127.0.0.1:0", func(m *mailServer) {
		m.data = func(letter) error {
			if once++; once > 1 {
				return nil
			}
			tx, err := s.owner.Begin(context.Background()) // so that no UPDATE of the sender succeeds
			if err == nil {
				_, err = tx.Exec(context.Background(), `SELECT FROM notifications FOR UPDATE`)
			}
			if err != nil {
				t.Error(err)
			}
			go func() {
				<-release
				_ = tx.Rollback(context.Background())
				close(held)
			}()
			return nil // 250
		}
	})
	child := exec.Command(os.Args[0])
	child.Env = append(os.Environ(), "NOTIFY_TEST_SENDER="+server.url, "NOTIFY_TEST_DATABASE="+s.serviceURL, "NOTIFY_TEST_CATALOG="+s.catalogURL)
	child.Stderr = os.Stderr
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	cdctest.Eventually(t, time.Minute, func() error {
		if n := scan[int](s, `SELECT count(*)::int FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock' AND query LIKE '%''SENT''%'`); n != 1 {
			return errors.New("the sender does not commit yet")
		}
		return nil
	})
	if err := child.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = child.Wait()
	close(release)
	<-held
	if n := s.one("mail", order); n.Status != notify.Pending || outcomes(n) != "unknown" || n.Attempts != 1 {
		t.Errorf("after the kill: %+v", n)
	}
	s.send(s.channel(server.url))
	n := s.until("mail", order, notify.Sent)
	got := server.all()
	if outcomes(n) != "unknown sent" || n.Attempts != 2 || len(got) != 2 {
		t.Fatalf("%d mails arrived, %+v", len(got), n)
	}
	if a, b := got[0].message.Header.Get("Message-Id"), got[1].message.Header.Get("Message-Id"); a != b || a == "" {
		t.Errorf("Message-Ids %s and %s", a, b)
	}
}

// The 250 has arrived and the database is away: the sender stores the outcome when the database is back.
func TestTheDatabaseGoesAwayBehindTheServersAnswer(t *testing.T) {
	cdctest.Long(t, "waits for leases to end")
	t.Parallel()
	s := open(t)
	gone := make(chan struct{})
	server := startMailServer(t, "127.0.0.1:0", func(m *mailServer) {
		m.data = func(letter) error {
			defer close(gone)
			_, err := s.owner.Exec(context.Background(), `ALTER TABLE notification_attempts RENAME TO elsewhere`)
			return err
		}
	})
	order := s.mail("OrderConfirmed", nil)
	s.send(s.channel(server.url), func(c *notify.SenderConfig) { c.Lease = time.Hour })
	<-gone
	cdctest.Eventually(t, time.Minute, func() error { // the sender has tried
		if n := scan[int](s, `SELECT count(*)::int FROM pg_stat_activity WHERE datname = current_database() AND query = 'rollback'`); n == 0 {
			return errors.New("the sender has not tried to store the outcome")
		}
		return nil
	})
	s.exec(s.owner, `ALTER TABLE elsewhere RENAME TO notification_attempts`)
	if n := s.until("mail", order, notify.Sent); outcomes(n) != "sent" || len(server.all()) != 1 {
		t.Errorf("%d mails, %+v", len(server.all()), n)
	}
}

func TestWithTheCatalogAwayMailsWaitAndAreNeverHalfFilled(t *testing.T) {
	t.Parallel()
	s := open(t)
	server := startMailServer(t, "127.0.0.1:0", func(*mailServer) {})
	order := s.mail("OrderConfirmed", nil)
	s.exec(s.inventory, `ALTER TABLE products RENAME TO elsewhere`)
	s.send(s.channel(server.url))
	cdctest.Eventually(t, time.Minute, func() error {
		if n := s.one("mail", order); !strings.Contains(n.Reason, "ORDERS_CATALOG_URL") {
			return fmt.Errorf("it does not give the reason why it waits: %+v", n)
		}
		return nil
	})
	if n := s.one("mail", order); n.Status != notify.Pending || n.Attempts != 0 || len(n.History) != 0 || n.Subject != "" || len(server.all()) != 0 {
		t.Errorf("with the catalog away: %+v, %d mails arrived", n, len(server.all()))
	}
	s.exec(s.inventory, `ALTER TABLE elsewhere RENAME TO products`)
	if n := s.until("mail", order, notify.Sent); !strings.Contains(n.Text, "Green tea") || !strings.Contains(n.Text, "CUP.white") || outcomes(n) != "sent" || n.Reason != "" {
		t.Errorf("then: %+v", n)
	}
}

func TestTheCatalogIsReadAndNothingElse(t *testing.T) {
	t.Parallel()
	s := open(t)
	reader := pool(t, s.catalogURL)
	for _, statement := range []string{`SELECT * FROM stock`, `SELECT updated_at FROM products`, `UPDATE products SET name = 'x'`, `DELETE FROM products`, `SELECT * FROM inbox`} {
		if _, err := reader.Exec(t.Context(), statement); err == nil {
			t.Errorf("the reader may %s", statement)
		}
	}
}

func TestATemplateThatFailsIsRecordedAndNotInTheWay(t *testing.T) {
	t.Parallel()
	s := open(t)
	server := startMailServer(t, "127.0.0.1:0", func(*mailServer) {})
	folder := fstest.MapFS{
		"mail.html": {Data: []byte(`{{if eq .Kind "shipped"}}{{slice .TrackingCode 0 40}}{{end}}fine`)}, "mail.txt": {Data: []byte("fine")}, "subject.txt": {Data: []byte("fine")},
	}
	broken, err := render.Parse(folder)
	if err != nil {
		t.Fatal(err)
	}
	bad, good := s.mail("OrderShipped", nil), s.mail("OrderConfirmed", nil)
	stop := s.send(s.channel(server.url, func(c *notify.MailConfig) { c.Templates = broken }))
	s.until("mail", good, notify.Sent)
	n := s.until("mail", bad, notify.Failed)
	stop()
	if !strings.Contains(n.Reason, "mail.html") || !strings.Contains(n.Reason, "slice") || len(n.History) != 0 || n.Subject != "" {
		t.Errorf("it says %+v", n)
	}
	list, err := s.store.List(t.Context(), notify.Filter{Channel: "mail", Status: notify.Failed, Limit: 10})
	if err != nil || len(list) != 1 || list[0].OrderID != bad {
		t.Errorf("listed as failed: %+v, %v", list, err)
	}
	// After the cause is fixed, the mail is sent when it is re-published.
	if done, err := s.store.Republish(t.Context(), notify.RepublishOptions{Channel: "mail", Since: epoch, Limit: 10}); done != 1 || err != nil {
		t.Errorf("%d re-published: %v", done, err)
	}
	s.send(s.channel(server.url))
	if n := s.until("mail", bad, notify.Sent); n.Republished != 1 {
		t.Errorf("then %+v", n)
	}
}

func TestAddressesWithMoreThanAnAddressAreRefusedAndRecorded(t *testing.T) {
	t.Parallel()
	s := open(t)
	server := startMailServer(t, "127.0.0.1:0", func(*mailServer) {})
	var bad []uuid.UUID
	for _, address := range []string{"ada@shop.example\r\nBcc: eve@evil.example", "ada\n@shop.example", "a@b.example, eve@evil.example", "Ada <ada@shop.example>", "", "ada", "ädä@shop.example", "a@" + strings.Repeat("b", 300), "a\u2028@shop.example", "a\x00b@shop.example"} {
		order := s.mail("OrderConfirmed", map[string]any{"buyerEmail": address})
		bad = append(bad, order)
		n := s.one("mail", order)
		if n.Status != notify.Failed || !strings.Contains(n.Reason, "plain e-mail address") || strings.ContainsAny(n.Recipient, "\r\n\x00\u2028") {
			t.Errorf("%q is %+v", address, n)
		}
	}
	// An UPDATE by hand does not send it again either.
	if done, err := s.store.Republish(t.Context(), notify.RepublishOptions{Channel: "mail", Since: epoch, Limit: 100}); done != len(bad) || err != nil {
		t.Errorf("%d of %d re-published: %v", done, len(bad), err)
	}
	good := s.mail("OrderConfirmed", nil)
	s.send(s.channel(server.url))
	s.until("mail", good, notify.Sent)
	for _, order := range bad {
		if n := s.until("mail", order, notify.Failed); len(n.History) != 0 {
			t.Errorf("attempts %+v", n.History)
		}
	}
	if n := len(server.all()); n != 1 {
		t.Errorf("%d mails arrived", n)
	}
}

// SMTP is down until five attempts are used up; then it is back, and all mails arrive without a command of an operator.
func TestWhatFailedIsRepublishedByItself(t *testing.T) {
	cdctest.Long(t, "waits for retries")
	t.Parallel()
	s := open(t)
	refusals := 2
	down := nobody(t)
	old, first, second := s.mail("OrderConfirmed", nil), s.mail("OrderConfirmed", nil), s.mail("OrderRejected", nil)
	s.exec(s.owner, `UPDATE notifications SET created_at = created_at - interval '2 hours' WHERE order_id = $1`, old)
	stop := s.send(s.channel(down))
	for _, order := range []uuid.UUID{old, first, second} {
		if n := s.until("mail", order, notify.Failed); n.Attempts != 5 || len(n.History) != 5 || n.EndedAt == nil {
			t.Errorf("with the server down: %+v", n)
		}
	}
	stop()
	server := startMailServer(t, strings.TrimPrefix(strings.TrimSuffix(down, "?starttls=never"), "smtp://"), func(m *mailServer) {
		m.rcpt = func(int) error { // it refuses at first
			if refusals--; refusals >= 0 {
				return &smtp.SMTPError{Code: 550, Message: "not yet"}
			}
			return nil
		}
	})
	stop = s.send(s.channel(down), func(c *notify.SenderConfig) { c.RetryEvery, c.RetryAge = 50*time.Millisecond, time.Hour })
	for _, order := range []uuid.UUID{first, second} {
		if n := s.until("mail", order, notify.Sent); n.Republished == 0 || n.Attempts != 1 || !strings.HasSuffix(outcomes(n), " sent") {
			t.Errorf("with the server back: %+v", n)
		}
	}
	stop()
	if n := s.one("mail", old); n.Status != notify.Failed || n.Republished != 0 {
		t.Errorf("too old: %+v", n)
	}
	if n := len(server.all()); n != 2 {
		t.Errorf("%d mails arrived, want 2", n)
	}
	// The command has no upper limit for the age but --since.
	var heard []int
	if done, err := s.store.Republish(t.Context(), notify.RepublishOptions{
		Channel: "mail", Since: time.Now().Add(-3 * time.Hour), Limit: 10, Progress: func(n int) { heard = append(heard, n) },
	}); done != 1 || err != nil || fmt.Sprint(heard) != "[1]" {
		t.Errorf("by hand %d, heard %v: %v", done, heard, err)
	}
}

// A mail that a server refused is offered to it again at intervals that double; a mail that ran out of attempts, in
// every round.
func TestARefusedMailIsNotForcedOnAServer(t *testing.T) {
	t.Parallel()
	s := open(t)
	server := startMailServer(t, "127.0.0.1:0", func(m *mailServer) { m.rcpt = func(int) error { return &smtp.SMTPError{Code: 550, Message: "no"} } })
	order := s.mail("OrderConfirmed", nil)
	s.exec(s.owner, `UPDATE notifications SET republished = 20`)
	s.send(s.channel(server.url), func(c *notify.SenderConfig) { c.RetryEvery = 10 * time.Millisecond })
	s.until("mail", order, notify.Failed)
	s.exec(s.owner, `INSERT INTO notifications (order_id, channel, kind, event_id, event, recipient, language, format, status, reason, ended_at)
		SELECT order_id, channel, 'shipped', event_id, event, recipient, language, format, 'FAILED', 'ran out', clock_timestamp() FROM notifications`)
	cdctest.Eventually(t, time.Minute, func() error {
		if n := scan[int](s, `SELECT republished FROM notifications WHERE kind = 'shipped'`); n == 0 {
			return errors.New("no round yet")
		}
		return nil
	})
	if n := scan[int](s, `SELECT republished FROM notifications WHERE kind = 'confirmed'`); n != 20 {
		t.Errorf("a refused mail went out again at once")
	}
}

func TestTheRateIsKept(t *testing.T) {
	cdctest.Long(t, "waits for a rate")
	t.Parallel()
	s := open(t)
	server := startMailServer(t, "127.0.0.1:0", func(*mailServer) {})
	first, second := s.mail("OrderConfirmed", nil), s.mail("OrderConfirmed", nil)
	s.exec(s.owner, `UPDATE notifications SET next_attempt_at = next_attempt_at - interval '1 minute' WHERE order_id = $1`, first)
	stop := s.send(s.channel(server.url), func(c *notify.SenderConfig) { c.Rate = 1 })
	s.until("mail", first, notify.Sent)
	stop()
	if n := s.one("mail", second); n.Status != notify.Pending || n.Attempts != 0 {
		t.Errorf("the second within a minute: %+v", n)
	}
}

package main

import (
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/mail"
	"strings"
	"sync"
	"testing"

	"github.com/emersion/go-smtp"
)

// receivers are a mail server and a partner's endpoint, which count the accepted mails and webhooks by their keys.
type receivers struct {
	smtpURL, hookURL string

	mu    sync.Mutex
	mails map[string]int // by Message-ID
	hooks map[string]int // by Idempotency-Key
}

func startReceivers(t *testing.T) *receivers {
	t.Helper()
	r := &receivers{mails: map[string]int{}, hooks: map[string]int{}}
	server := smtp.NewServer(smtp.BackendFunc(func(*smtp.Conn) (smtp.Session, error) { return &delivery{to: r}, nil }))
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- server.Serve(ln) }()
	t.Cleanup(func() {
		_ = server.Close()
		if err := <-served; err != nil && !errors.Is(err, smtp.ErrServerClosed) {
			t.Error(err)
		}
	})
	r.smtpURL = "smtp://" + ln.Addr().String() + "?starttls=never"
	hook := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, req *http.Request) {
		if _, err := io.Copy(io.Discard, req.Body); err == nil {
			r.took(r.hooks, req.Header.Get("Idempotency-Key"))
		}
	}))
	t.Cleanup(hook.Close)
	r.hookURL = hook.URL
	return r
}

func (r *receivers) took(of map[string]int, key string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	of[key]++
}

// delivery is a session with a mail server that accepts everything.
type delivery struct{ to *receivers }

func (*delivery) Mail(string, *smtp.MailOptions) error { return nil }
func (*delivery) Rcpt(string, *smtp.RcptOptions) error { return nil }
func (*delivery) Reset()                               {}
func (*delivery) Logout() error                        { return nil }

func (d *delivery) Data(r io.Reader) error {
	m, err := mail.ReadMessage(r)
	if err == nil {
		_, err = io.Copy(io.Discard, m.Body)
	}
	if err == nil {
		d.to.took(d.to.mails, strings.Trim(m.Header.Get("Message-Id"), "<>"))
	}
	return err
}

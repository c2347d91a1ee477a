package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/walpost/walpost/cdc/inbox"
	"github.com/walpost/walpost/cdc/pglimit"
	"github.com/walpost/walpost/cmd/internal/operate"
	"github.com/walpost/walpost/orders/notify"
	"github.com/walpost/walpost/orders/notify/render"
)

// notifications is the configuration of the groups mail and webhook.
type notifications struct {
	SMTPURL    string `name:"smtp-url" env:"ORDERS_SMTP_URL" placeholder:"URL" help:"The mail server, as in smtp://user:password@host:587?starttls=required (or optional, never; smtps:// is TLS from the beginning)."`
	MailFrom   string `env:"ORDERS_MAIL_FROM" placeholder:"ADDRESS" help:"Whom mails are from, as in Shop <shop@shop.example>."`
	MailRate   int    `env:"ORDERS_MAIL_RATE" default:"600" help:"Most mails a minute, of this process; 0: any number."`
	Templates  string `name:"mail-templates" env:"ORDERS_MAIL_TEMPLATES" placeholder:"FOLDER" help:"Templates in place of the built-in ones: mail.html, mail.txt, subject.txt, and what these call."`
	CatalogURL string `name:"catalog-url" env:"ORDERS_CATALOG_URL" placeholder:"URL" help:"The inventory database, as the role that reads names and pictures of products."`

	WebhookURL    string `name:"webhook-url" env:"ORDERS_WEBHOOK_URL" placeholder:"URL" help:"Where webhooks go, as in https://partner.example/orders."`
	WebhookSecret string `env:"ORDERS_WEBHOOK_SECRET" placeholder:"SECRET" help:"Signs webhooks; at least 16 bytes."`

	RetryEvery string `name:"mail-retry-every" env:"ORDERS_MAIL_RETRY_EVERY" default:"5m" help:"How often mails and webhooks that FAILED are re-published."`
	RetryAge   string `name:"mail-retry-age" env:"ORDERS_MAIL_RETRY_AGE" default:"24h" help:"Up to which age; what is older waits for orders mail retry."`
	Backoff    string `name:"mail-backoff" env:"ORDERS_MAIL_BACKOFF" default:"5s" help:"About how long after the first attempt comes the second; it doubles with each."`

	every, age, backoff time.Duration
	templates           *render.Templates
	channel             *notify.Webhook
	metrics             *notify.Metrics
}

// prepareMail is a group's prepare.
func (n *notifications) prepareMail() (missing string, err error) {
	if n.SMTPURL == "" && n.MailFrom == "" {
		missing = "ORDERS_SMTP_URL, ORDERS_MAIL_FROM and ORDERS_CATALOG_URL"
	}
	_, mailErr := notify.NewMail(notify.MailConfig{URL: n.SMTPURL, From: n.MailFrom})
	var catalogErr, rateErr, templatesErr error
	if _, err := pgxpool.ParseConfig(n.CatalogURL); err != nil || n.CatalogURL == "" {
		catalogErr = errors.New("--catalog-url (ORDERS_CATALOG_URL) is missing or no URL: write the inventory database's as in postgres://inventory_reader:password@host:5432/inventory; inventory migrate makes the role")
	}
	if n.MailRate < 0 {
		rateErr = errors.New("--mail-rate (ORDERS_MAIL_RATE) is below 0: write a number of mails a minute, as in 600, or 0 for any")
	}
	folder := fs.FS(render.BuiltIn())
	if n.Templates != "" {
		folder = os.DirFS(n.Templates)
	}
	if n.templates, templatesErr = render.Parse(folder); templatesErr != nil {
		templatesErr = fmt.Errorf("--mail-templates (ORDERS_MAIL_TEMPLATES): %w; fix the template, or leave this empty for the built-in ones", templatesErr)
	}
	return missing, errors.Join(mailErr, catalogErr, rateErr, templatesErr, n.times())
}

// prepareWebhook is a group's prepare.
func (n *notifications) prepareWebhook() (missing string, err error) {
	if n.WebhookURL == "" && n.WebhookSecret == "" {
		missing = "ORDERS_WEBHOOK_URL and ORDERS_WEBHOOK_SECRET"
	}
	n.channel, err = notify.NewWebhook(notify.WebhookConfig{URL: n.WebhookURL, Secret: n.WebhookSecret})
	return missing, errors.Join(err, n.times())
}

func (n *notifications) times() error {
	var errs []error
	for _, d := range []struct {
		name, text string
		into       *time.Duration
	}{
		{"--mail-retry-every (ORDERS_MAIL_RETRY_EVERY)", n.RetryEvery, &n.every},
		{"--mail-retry-age (ORDERS_MAIL_RETRY_AGE)", n.RetryAge, &n.age},
		{"--mail-backoff (ORDERS_MAIL_BACKOFF)", n.Backoff, &n.backoff},
	} {
		var err error
		if *d.into, err = time.ParseDuration(d.text); err != nil || *d.into <= 0 {
			errs = append(errs, fmt.Errorf("%s: %q is no time above 0; write it as in 5m or 24h", d.name, d.text))
		}
	}
	return errors.Join(errs...)
}

func (s *shared) mail() (inbox.Config, background) {
	store := notify.NewStore(s.pool)
	return store.Inbox(notify.ChannelMail, "", inbox.Config{}), s.sender(store, func(ctx context.Context, cfg notify.SenderConfig) error {
		catalog, err := notify.OpenCatalog(ctx, s.told.CatalogURL)
		if err != nil {
			return fmt.Errorf("--catalog-url (ORDERS_CATALOG_URL): %w", err)
		}
		defer catalog.Close()
		channel, err := notify.NewMail(notify.MailConfig{URL: s.told.SMTPURL, From: s.told.MailFrom, Catalog: catalog, Templates: s.told.templates})
		if err != nil {
			return err
		}
		cfg.Channel, cfg.Rate = channel, s.told.MailRate
		return notify.NewSender(cfg).Run(ctx)
	})
}

func (s *shared) webhook() (inbox.Config, background) {
	store, to := notify.NewStore(s.pool), ""
	if s.told.channel != nil {
		to = s.told.channel.To()
	}
	return store.Inbox(notify.ChannelWebhook, to, inbox.Config{}), s.sender(store, func(ctx context.Context, cfg notify.SenderConfig) error {
		defer s.told.channel.Close()
		cfg.Channel = s.told.channel
		return notify.NewSender(cfg).Run(ctx)
	})
}

// sender runs with what both channels share.
func (s *shared) sender(store *notify.Store, run func(context.Context, notify.SenderConfig) error) background {
	if s.told.metrics == nil {
		s.told.metrics = notify.NewMetrics(s.reg, store)
	}
	cfg := notify.SenderConfig{
		Store: store, Metrics: s.told.metrics, Log: s.log, RetryEvery: s.told.every, RetryAge: s.told.age, Backoff: s.told.backoff,
	}
	return func(ctx context.Context) error { return run(ctx, cfg) }
}

// notices are the commands about one channel.
type notices struct {
	List  noticeList  `cmd:"" help:"List them, newest first."`
	Show  noticeShow  `cmd:"" help:"Show one whole, as JSON: what was sent, to whom, for which event, and each attempt with the answer."`
	Retry noticeRetry `cmd:"" help:"Make those that FAILED PENDING again, with all their attempts: the consumers' senders do the rest. What was SENT stays so."`
}

type noticeList struct {
	Status string `enum:"PENDING,SENT,FAILED,SUPPRESSED,any" default:"any" help:"Only those that are ${enum}."`
	Since  string `default:"168h" help:"Only those made since: a time as 2026-11-01T00:00Z, or how long ago, as in 2h."`
	Limit  int    `default:"100" help:"At most so many."`
	JSON   bool   `name:"json" help:"As JSON, one a line."`
}

type noticeShow struct {
	ID int64 `arg:"" help:"From the list."`
}

type noticeRetry struct {
	Since string `default:"24h" help:"Those made since: a time as 2026-11-01T00:00Z, or how long ago, as in 2h."`
	Limit int    `default:"10000" help:"At most so many, the oldest first."`
}

// since reads a moment, or how long ago it was.
func since(text string) (time.Time, error) {
	if ago, err := time.ParseDuration(text); err == nil && ago >= 0 {
		return time.Now().Add(-ago), nil
	}
	at, err := operate.ParseTime(text)
	if err != nil {
		return time.Time{}, fmt.Errorf("--since: %w, nor how long ago, as in 2h", err)
	}
	return at, nil
}

func (c *cli) notices(ctx context.Context, command string, stdout io.Writer) error {
	channel, what, _ := strings.Cut(command, " ")
	asked := map[string]*notices{notify.ChannelMail: &c.Mail, notify.ChannelWebhook: &c.Webhook}[channel]
	if err := checkURL("--database-url (ORDERS_DATABASE_URL)", c.DatabaseURL); err != nil {
		return err
	}
	config, err := pgxpool.ParseConfig(c.DatabaseURL)
	if err != nil {
		return fmt.Errorf("--database-url (ORDERS_DATABASE_URL): %w", err)
	}
	pglimit.Set(&config.ConnConfig.Config)
	config.ConnConfig.Tracer = pglimit.Queries{Within: 30 * time.Second}
	pool, err := pgxpool.NewWithConfig(ctx, config)
	if err != nil {
		return fmt.Errorf("--database-url (ORDERS_DATABASE_URL): %w", err)
	}
	defer pool.Close()
	store := notify.NewStore(pool)
	switch what {
	case "list":
		return asked.List.run(ctx, store, channel, stdout)
	case "retry":
		return asked.Retry.run(ctx, store, channel, stdout)
	}
	found, err := store.Show(ctx, channel, asked.Show.ID)
	if err != nil {
		return fmt.Errorf("%w (orders %s list)", err, channel)
	}
	out := json.NewEncoder(stdout)
	out.SetIndent("", "  ")
	out.SetEscapeHTML(false)
	return out.Encode(found)
}

func (l *noticeList) run(ctx context.Context, store *notify.Store, channel string, stdout io.Writer) error {
	from, err := since(l.Since)
	if err != nil {
		return err
	}
	list, err := store.List(ctx, notify.Filter{Channel: channel, Status: strings.TrimPrefix(l.Status, "any"), Since: from, Limit: l.Limit})
	if err != nil {
		return err
	}
	if l.JSON {
		out := json.NewEncoder(stdout)
		for _, n := range list {
			if err := out.Encode(n); err != nil {
				return err
			}
		}
		return nil
	}
	table := tabwriter.NewWriter(stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "ID\tMADE\tSTATUS\tATTEMPTS\tKIND\tORDER\tEVENT\tTO\tWHY")
	for _, n := range list {
		fmt.Fprintf(table, "%d\t%s\t%s\t%d\t%s\t%s\t%s\t%s\t%s\n", n.ID, n.CreatedAt.UTC().Format(time.RFC3339), n.Status, n.Attempts, n.Kind, n.OrderID, n.EventID, n.Recipient, n.Reason)
	}
	return table.Flush()
}

func (r *noticeRetry) run(ctx context.Context, store *notify.Store, channel string, stdout io.Writer) error {
	from, err := since(r.Since)
	if err != nil {
		return err
	}
	failed, err := store.Failed(ctx, channel, from)
	if err != nil {
		return err
	}
	most := min(failed, r.Limit)
	done, err := store.Republish(ctx, channel, from, r.Limit, func(done int) { fmt.Fprintf(stdout, "%d of %d re-published\n", done, max(done, most)) })
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(stdout, "%d of %d that FAILED are PENDING again; what fails once more: orders %s list --status FAILED\n", done, max(done, failed), channel)
	return err
}

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/rs/zerolog"

	"github.com/walpost/walpost/cdc/identity"
	"github.com/walpost/walpost/cdc/pglimit"
	"github.com/walpost/walpost/cmd/internal/inboxcmd"
	"github.com/walpost/walpost/orders/notify"
	"github.com/walpost/walpost/orders/notify/render"
)

// sendFlags are the flags for the senders of the groups mail and webhook.
type sendFlags struct {
	SMTPURL    string `name:"smtp-url" env:"ORDERS_SMTP_URL" placeholder:"URL" help:"The mail server, as in smtp://user:password@host:587?starttls=required (or optional, never; smtps:// uses TLS from the first byte)."`
	MailFrom   string `env:"ORDERS_MAIL_FROM" placeholder:"ADDRESS" help:"The sender of mails, as in Shop <shop@shop.example>."`
	MailRate   int    `env:"ORDERS_MAIL_RATE" default:"600" help:"The most mails a minute of this process; 0: no limit."`
	Templates  string `name:"mail-templates" env:"ORDERS_MAIL_TEMPLATES" placeholder:"FOLDER" help:"Templates that replace the built-in ones: mail.html, mail.txt, subject.txt, and the templates that these call."`
	CatalogURL string `name:"catalog-url" env:"ORDERS_CATALOG_URL" placeholder:"URL" help:"The inventory database, as the role that reads names and pictures of products."`

	WebhookURL    string `name:"webhook-url" env:"ORDERS_WEBHOOK_URL" placeholder:"URL" help:"The receiver of webhooks, as in https://partner.example/orders."`
	WebhookSecret string `env:"ORDERS_WEBHOOK_SECRET" placeholder:"SECRET" help:"The key that signs webhooks; at least 16 bytes."`

	RetryEvery string `name:"mail-retry-every" env:"ORDERS_MAIL_RETRY_EVERY" default:"5m" help:"How often mails and webhooks that FAILED are re-published."`
	RetryAge   string `name:"mail-retry-age" env:"ORDERS_MAIL_RETRY_AGE" default:"24h" help:"The oldest FAILED mails and webhooks that are re-published; older ones wait for orders mail retry."`
	Backoff    string `name:"mail-backoff" env:"ORDERS_MAIL_BACKOFF" default:"5s" help:"About how long the second attempt waits after the first; the wait doubles with each attempt."`
}

// catalogURL names the flag and the variable for the URL of the inventory database.
const catalogURL = "--catalog-url (ORDERS_CATALOG_URL)"

// A sender sends the notifications of one channel. It runs next to the consumer that writes them.
type sender struct {
	to  string              // the recipient of webhooks; empty for mails
	cfg notify.SenderConfig // from the flags
	run func(context.Context, notify.SenderConfig) error
}

// mail returns the sender of mails, or the mistakes in its flags. If none of its flags is set, missing names the
// variables to set.
func (f sendFlags) mail() (s sender, missing string, err error) {
	if f.SMTPURL == "" && f.MailFrom == "" {
		missing = "ORDERS_SMTP_URL, ORDERS_MAIL_FROM and ORDERS_CATALOG_URL"
	}
	_, mailErr := notify.NewMail(notify.MailConfig{URL: f.SMTPURL, From: f.MailFrom})
	var catalogErr, rateErr error
	if f.CatalogURL == "" {
		catalogErr = errors.New(catalogURL + " is missing: write the inventory database's as in postgres://inventory_reader:password@host:5432/inventory?sslmode=verify-full; inventory migrate creates the role")
	} else {
		catalogErr = checkURL(catalogURL, f.CatalogURL)
	}
	if f.MailRate < 0 {
		rateErr = errors.New("--mail-rate (ORDERS_MAIL_RATE) is below 0: write a number of mails a minute, as in 600, or 0 for no limit")
	}
	folder := fs.FS(render.BuiltIn())
	if f.Templates != "" {
		folder = os.DirFS(f.Templates)
	}
	templates, templatesErr := render.Parse(folder)
	if templatesErr != nil {
		templatesErr = fmt.Errorf("--mail-templates (ORDERS_MAIL_TEMPLATES): %w; fix the template, or leave this empty for the built-in ones", templatesErr)
	}
	cfg, timesErr := f.times()
	cfg.Rate = f.MailRate
	return sender{cfg: cfg, run: func(ctx context.Context, cfg notify.SenderConfig) error {
		pool, err := identity.NewPostgres(catalogURL, f.CatalogURL, cfg.Log).Pool(ctx)
		if err != nil {
			return err
		}
		catalog, err := notify.OpenCatalog(ctx, pool)
		if err != nil {
			return fmt.Errorf("%s: %w", catalogURL, err)
		}
		defer catalog.Close()
		if cfg.Channel, err = notify.NewMail(notify.MailConfig{URL: f.SMTPURL, From: f.MailFrom, Catalog: catalog, Templates: templates}); err != nil {
			return err
		}
		return notify.NewSender(cfg).Run(ctx)
	}}, missing, errors.Join(mailErr, catalogErr, rateErr, templatesErr, timesErr)
}

// webhook does for webhooks what mail does for mails.
func (f sendFlags) webhook() (s sender, missing string, err error) {
	if f.WebhookURL == "" && f.WebhookSecret == "" {
		missing = "ORDERS_WEBHOOK_URL and ORDERS_WEBHOOK_SECRET"
	}
	channel, err := notify.NewWebhook(notify.WebhookConfig{URL: f.WebhookURL, Secret: f.WebhookSecret})
	cfg, timesErr := f.times()
	if err := errors.Join(err, timesErr); err != nil {
		return sender{}, missing, err
	}
	cfg.Channel = channel
	return sender{to: channel.To(), cfg: cfg, run: func(ctx context.Context, cfg notify.SenderConfig) error {
		defer channel.Close()
		return notify.NewSender(cfg).Run(ctx)
	}}, "", nil
}

func (f sendFlags) times() (cfg notify.SenderConfig, err error) {
	for _, d := range []struct {
		name, text string
		into       *time.Duration
	}{
		{"--mail-retry-every (ORDERS_MAIL_RETRY_EVERY)", f.RetryEvery, &cfg.RetryEvery},
		{"--mail-retry-age (ORDERS_MAIL_RETRY_AGE)", f.RetryAge, &cfg.RetryAge},
		{"--mail-backoff (ORDERS_MAIL_BACKOFF)", f.Backoff, &cfg.Backoff},
	} {
		var wrong error
		if *d.into, wrong = time.ParseDuration(d.text); wrong != nil || *d.into <= 0 {
			err = errors.Join(err, fmt.Errorf("%s: %q is not a duration above 0; write it as in 5m or 24h", d.name, d.text))
		}
	}
	return cfg, err
}

// in returns the sender's work in this process.
func (s sender) in(store *notify.Store, metrics *notify.Metrics, log zerolog.Logger) background {
	s.cfg.Store, s.cfg.Metrics, s.cfg.Log = store, metrics, log
	return func(ctx context.Context) error { return s.run(ctx, s.cfg) }
}

// notices are the commands for the notifications of one channel.
type notices struct {
	List  noticeList  `cmd:"" help:"List notifications, newest first."`
	Show  noticeShow  `cmd:"" help:"Show one notification as JSON: its content, recipient and event, and each attempt with the answer."`
	Retry noticeRetry `cmd:"" help:"Make FAILED notifications PENDING again, with all their attempts; the senders of orders consume send them. SENT ones stay SENT."`
}

type noticeList struct {
	Status string `enum:"PENDING,SENT,FAILED,SUPPRESSED,any" default:"any" help:"Only notifications with this status: ${enum}."`
	Since  string `default:"168h" help:"Only notifications created since then: a time as in 2026-11-01T00:00Z, or an age as in 2h."`
	Limit  int    `default:"100" help:"The most notifications to list."`
	JSON   bool   `name:"json" help:"Print JSON, one notification a line."`
}

type noticeShow struct {
	ID int64 `arg:"" help:"The id from the list."`
}

type noticeRetry struct {
	Since string `default:"24h" help:"Only notifications created since then: a time as in 2026-11-01T00:00Z, or an age as in 2h."`
	Limit int    `default:"10000" help:"The most notifications to change; the oldest come first."`
}

// channel is the channel of a command's notifications.
type channel string

type mailCmd struct{ notices }

// ProvideChannel is called by kong for the subcommands of mail.
func (*mailCmd) ProvideChannel() channel { return notify.ChannelMail }

type webhookCmd struct{ notices }

// ProvideChannel is called by kong for the subcommands of webhook.
func (*webhookCmd) ProvideChannel() channel { return notify.ChannelWebhook }

// since parses a time, or an age such as 2h.
func since(text string) (time.Time, error) {
	if ago, err := time.ParseDuration(text); err == nil && ago >= 0 {
		return time.Now().Add(-ago), nil
	}
	at, err := inboxcmd.ParseTime(text)
	if err != nil {
		return time.Time{}, fmt.Errorf("--since: %w, and not an age as in 2h", err)
	}
	return at, nil
}

// notices calls do with a Store for the notifications in the orders database.
func (p *process) notices(ctx context.Context, do func(*notify.Store) error) error {
	if err := checkURL(databaseURL, p.cli.DatabaseURL); err != nil {
		return err
	}
	database := identity.NewPostgres(databaseURL, p.cli.DatabaseURL, zerolog.Nop())
	config, err := database.Pool(ctx)
	if err != nil {
		return err
	}
	pglimit.Set(&config.ConnConfig.Config)
	config.ConnConfig.Tracer = pglimit.Queries{Within: 30 * time.Second}
	pool, err := pgxpool.NewWithConfig(ctx, config)
	if err != nil {
		return fmt.Errorf("%s: %w", databaseURL, err)
	}
	defer pool.Close()
	return database.Explain(do(notify.NewStore(pool)))
}

// Run lists notifications.
func (l *noticeList) Run(ctx context.Context, p *process, of channel) error {
	from, err := since(l.Since)
	if err != nil {
		return err
	}
	return p.notices(ctx, func(store *notify.Store) error {
		list, err := store.List(ctx, notify.Filter{Channel: string(of), Status: strings.TrimPrefix(l.Status, "any"), Since: from, Limit: l.Limit})
		if err != nil {
			return err
		}
		if l.JSON {
			out := json.NewEncoder(p.stdout)
			for _, n := range list {
				if err := out.Encode(n); err != nil {
					return err
				}
			}
			return nil
		}
		table := tabwriter.NewWriter(p.stdout, 0, 0, 2, ' ', 0)
		fmt.Fprintln(table, "ID\tMADE\tSTATUS\tATTEMPTS\tKIND\tORDER\tEVENT\tTO\tWHY")
		for _, n := range list {
			fmt.Fprintf(table, "%d\t%s\t%s\t%d\t%s\t%s\t%s\t%s\t%s\n", n.ID, n.CreatedAt.UTC().Format(time.RFC3339), n.Status, n.Attempts, n.Kind, n.OrderID, n.EventID, n.Recipient, n.Reason)
		}
		return table.Flush()
	})
}

// Run prints one notification.
func (s *noticeShow) Run(ctx context.Context, p *process, of channel) error {
	return p.notices(ctx, func(store *notify.Store) error {
		found, err := store.Show(ctx, string(of), s.ID)
		if err != nil {
			return fmt.Errorf("%w (orders %s list)", err, of)
		}
		out := json.NewEncoder(p.stdout)
		out.SetIndent("", "  ")
		out.SetEscapeHTML(false)
		return out.Encode(found)
	})
}

// Run makes FAILED notifications PENDING again.
func (r *noticeRetry) Run(ctx context.Context, p *process, of channel) error {
	from, err := since(r.Since)
	if err != nil {
		return err
	}
	return p.notices(ctx, func(store *notify.Store) error {
		failed, err := store.Failed(ctx, string(of), from)
		if err != nil {
			return err
		}
		most := min(failed, r.Limit)
		done, err := store.Republish(ctx, notify.RepublishOptions{Channel: string(of), Since: from, Limit: r.Limit, Progress: func(done int) {
			fmt.Fprintf(p.stdout, "%d of %d re-published\n", done, max(done, most))
		}})
		if err != nil {
			return err
		}
		_, err = fmt.Fprintf(p.stdout, "%d of %d that FAILED are PENDING again; to see those that fail again: orders %s list --status FAILED\n", done, max(done, failed), of)
		return err
	})
}

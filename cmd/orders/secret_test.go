package main

import (
	"context"
	"io"
	"maps"
	"strings"
	"testing"
	"time"

	"github.com/walpost/walpost/cdc/cdctest"
)

// TestNoErrorShowsAURL: watched fails the run if an error shows the password.
func TestNoErrorShowsAURL(t *testing.T) {
	good := map[string]string{
		"ORDERS_DATABASE_URL": "postgres://orders_service@127.0.0.1:1/orders?sslmode=disable", "ORDERS_ADMIN_DATABASE_URL": "postgres://postgres@127.0.0.1:1/orders?sslmode=disable",
		"ORDERS_CATALOG_URL": "postgres://inventory_reader@127.0.0.1:1/inventory?sslmode=disable", "ORDERS_SMTP_URL": "smtp://127.0.0.1:1", "ORDERS_MAIL_FROM": "shop@shop.example",
		"ORDERS_WEBHOOK_URL": "http://127.0.0.1:1/", "ORDERS_WEBHOOK_SECRET": "of sixteen bytes: " + cdctest.Canary, "ORDERS_KAFKA_BROKERS": "127.0.0.1:1",
		"ORDERS_DATABASE_WAIT": "0s", "ORDERS_HTTP": "127.0.0.1:0", "ORDERS_CONSUME_HTTP": "127.0.0.1:0",
	}
	for variable, c := range map[string]struct {
		scheme   string
		commands [][]string
	}{
		"ORDERS_DATABASE_URL":       {"postgres", [][]string{{"serve"}, {"migrate"}, {"consume", "orders"}, {"mail", "list"}, {"parked", "list"}, {"statistics", "show"}}},
		"ORDERS_ADMIN_DATABASE_URL": {"postgres", [][]string{{"migrate"}}},
		"ORDERS_CATALOG_URL":        {"postgres", [][]string{{"consume", "mail"}}},
		"ORDERS_SMTP_URL":           {"smtp", [][]string{{"consume", "mail"}}},
		"ORDERS_WEBHOOK_URL":        {"ftp", [][]string{{"consume", "webhook"}}},
	} {
		for _, bad := range cdctest.BadURLs(c.scheme) {
			for _, args := range c.commands {
				env := maps.Clone(good)
				env[variable] = bad
				ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
				err := watched(ctx, args, getenv(env), io.Discard, io.Discard)
				if err == nil || !strings.Contains(err.Error(), variable) || ctx.Err() != nil {
					t.Errorf("%v with %s=%s: %v", args, variable, bad, err)
				}
				cancel()
			}
		}
	}
}

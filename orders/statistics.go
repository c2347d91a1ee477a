package orders

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/walpost/walpost/cdc/httpjson"
)

// maxStatisticsDays is the largest number of days in one answer.
const maxStatisticsDays = 366

// Statistic counts the sales of one product on one day.
type Statistic struct {
	Day      string `json:"day"` // in UTC, of the payment
	SKU      string `json:"sku"`
	Currency string `json:"currency"`
	Orders   int64  `json:"orders"`
	Quantity int64  `json:"quantity"`
	Revenue  string `json:"revenue"` // an amount, of any size

	// The part of them that was rejected or cancelled since.
	ReturnedOrders   int64  `json:"returnedOrders"`
	ReturnedQuantity int64  `json:"returnedQuantity"`
	ReturnedRevenue  string `json:"returnedRevenue"`
}

// Statistics are the sales of some days, by day, product and currency.
type Statistics struct {
	// Since is the first counted day, if earlier events are lost; otherwise nil.
	Since      *string     `json:"since,omitempty"`
	Statistics []Statistic `json:"statistics"`
}

// Statistics returns the sales from day from to day to, both included. Package statistics writes them; they follow the
// orders within moments.
func (s *Store) Statistics(ctx context.Context, from, to time.Time) (Statistics, error) {
	var found Statistics
	err := pgx.BeginTxFunc(ctx, s.pool, pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly}, func(tx pgx.Tx) error {
		err := tx.QueryRow(ctx, `SELECT since::text FROM statistics_since`).Scan(&found.Since)
		if err != nil && !errors.Is(err, pgx.ErrNoRows) {
			return err
		}
		rows, _ := tx.Query(ctx, `SELECT day::text, sku, currency, orders, quantity, revenue::text, returned_orders, returned_quantity, returned_revenue::text
			FROM statistics WHERE day BETWEEN $1 AND $2 ORDER BY day, sku, currency`, from, to)
		found.Statistics, err = pgx.CollectRows(rows, pgx.RowToStructByPos[Statistic])
		return err
	})
	if err != nil {
		return Statistics{}, fmt.Errorf("read statistics: %w", err)
	}
	return found, nil
}

// ParseDays parses the days from and to, as in 2026-11-01. If they are empty, it returns the last 30 days, up to today.
func ParseDays(from, to string) (first, last time.Time, err error) {
	last = time.Now().UTC().Truncate(24 * time.Hour)
	if to != "" {
		if last, err = time.Parse(time.DateOnly, to); err != nil {
			return first, last, errors.New("to must be a day, as in 2026-11-30")
		}
	}
	first = last.AddDate(0, 0, -29)
	if from != "" {
		if first, err = time.Parse(time.DateOnly, from); err != nil {
			return first, last, errors.New("from must be a day, as in 2026-11-01")
		}
	}
	if first.After(last) || last.Sub(first) >= maxStatisticsDays*24*time.Hour {
		return first, last, fmt.Errorf("from must not be after to, nor more than %d days in all", maxStatisticsDays)
	}
	return first, last, nil
}

func (a *api) statistics(w http.ResponseWriter, r *http.Request) error {
	asked, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return badRequest("the query string cannot be read")
	}
	from, to, err := ParseDays(asked.Get("from"), asked.Get("to"))
	if err != nil {
		return badRequest(err.Error())
	}
	found, err := a.store.Statistics(r.Context(), from, to)
	if err != nil {
		return err
	}
	return httpjson.Answer(w, found)
}

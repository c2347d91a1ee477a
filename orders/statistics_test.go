package orders_test

import (
	"strings"
	"testing"

	"github.com/walpost/walpost/orders"
)

func TestStatisticsOfSomeDays(t *testing.T) {
	s := open(t)
	if got := s.do(200, "GET", "/statistics", "").body; got != `{"statistics":[]}` {
		t.Errorf("none: %s", got)
	}
	for _, day := range []string{"2026-01-01", "2026-01-02", "2026-01-03"} {
		if _, err := s.owner.Exec(t.Context(), `INSERT INTO statistics VALUES ($1, 'B', 'EUR', 3, 4, 12345678901234567890.5, 1, 2, 0), ($1, 'A', 'USD', 1, 1, 1, 0, 0, 0)`, day); err != nil {
			t.Fatal(err)
		}
	}
	const b = `{"day":"2026-01-02","sku":"B","currency":"EUR","orders":3,"quantity":4,"revenue":"12345678901234567890.50","returnedOrders":1,"returnedQuantity":2,"returnedRevenue":"0.00"}`
	if got := s.do(200, "GET", "/statistics?from=2026-01-02&to=2026-01-02", "").body; !strings.HasSuffix(got, ","+b+"]}") || strings.Count(got, "day") != 2 {
		t.Errorf("one day: %s", got)
	}
	if _, err := s.owner.Exec(t.Context(), `INSERT INTO statistics_since VALUES ('2026-01-02')`); err != nil {
		t.Fatal(err)
	}
	got := decode[orders.Statistics](t, s.do(200, "GET", "/statistics?from=2025-12-31&to=2026-12-31", "").body)
	if len(got.Statistics) != 6 || got.Since == nil || *got.Since != "2026-01-02" {
		t.Errorf("a year: %+v", got)
	}
	for query, want := range map[string]string{
		"from=yesterday": "from must be a day", "to=2026-02-30": "to must be a day", "from=2026-01-02&to=2026-01-01": "not be after", "from=2024-01-01&to=2025-01-01": "366 days",
	} {
		if got := s.do(400, "GET", "/statistics?"+query, "").body; !strings.Contains(got, want) {
			t.Errorf("%s: %s", query, got)
		}
	}
}

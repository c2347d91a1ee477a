package inventory_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/rs/zerolog"

	"github.com/walpost/walpost/cdc/inbox"
	"github.com/walpost/walpost/inventory"
)

// ask makes a request and returns the answer's status and body, which must be JSON of the right media type.
func ask(t *testing.T, f *fixture, method, path, body string) (int, map[string]any) {
	t.Helper()
	return askAs(t, f, "application/json; charset=utf-8", method, path, body)
}

// askAs does the same as ask, for a body of another media type.
func askAs(t *testing.T, f *fixture, kind, method, path, body string) (int, map[string]any) {
	t.Helper()
	mux := http.NewServeMux()
	cfg := f.config("inventory")
	inventory.Routes(mux, f.store, inbox.NewOperator(cfg.Inbox(), ""), cfg.Metrics, zerolog.Nop())
	w := httptest.NewRecorder()
	req := httptest.NewRequestWithContext(t.Context(), method, path, strings.NewReader(body))
	req.Header.Set("Content-Type", kind)
	mux.ServeHTTP(w, req)
	res := w.Result()
	want := "application/json"
	if res.StatusCode >= 400 {
		want = "application/problem+json"
	}
	if got := res.Header.Get("Content-Type"); got != want {
		t.Errorf("%s %s: %d as %s", method, path, res.StatusCode, got)
	}
	raw, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	var answer map[string]any
	if err := json.Unmarshal(raw, &answer); err != nil {
		t.Fatalf("%s %s: %v in %q", method, path, err, raw)
	}
	return res.StatusCode, answer
}

func TestProductsOverHTTP(t *testing.T) {
	t.Parallel()
	f := storeFixture(t, nil)
	for _, body := range []string{`{"name": "Tea"}`, `{"name": "Green tea", "pictureUrl": "https://shop.example/tea.jpg?w=48"}`} {
		if status, got := ask(t, f, "PUT", "/products/tea", body); status != 200 || got["sku"] != "tea" {
			t.Errorf("%d %v", status, got)
		}
	}
	if status, got := ask(t, f, "GET", "/products/tea", ""); status != 200 || got["name"] != "Green tea" || got["pictureUrl"] != "https://shop.example/tea.jpg?w=48" {
		t.Errorf("%d %v", status, got)
	}
}

func TestStockOverHTTP(t *testing.T) {
	t.Parallel()
	f := storeFixture(t, nil)
	if status, got := ask(t, f, "PUT", "/stock/tea", `{"available": 10}`); status != 200 || got["available"] != 10.0 || got["sku"] != "tea" {
		t.Errorf("%d %v", status, got)
	}
	order := orderID()
	f.mustApply(paid(orderID(), item("tea", 3)))
	f.mustApply(paid(order, item("tea", 3), item("cup", 2)))
	ask(t, f, "PUT", "/stock/tea", `{"available": 0}`)
	ask(t, f, "PUT", "/stock/pot%2Fblue", `{"available": 1}`)

	if status, got := ask(t, f, "GET", "/stock/tea", ""); status != 200 || got["available"] != 0.0 {
		t.Errorf("%d %v", status, got)
	}
	if status, got := ask(t, f, "GET", "/stock/pot%2Fblue", ""); status != 200 || got["sku"] != "pot/blue" {
		t.Errorf("%d %v", status, got)
	}
	_, got := ask(t, f, "GET", "/stock/tea/movements", "")
	var changes []string
	for _, m := range got["items"].([]any) {
		m := m.(map[string]any)
		changes = append(changes, fmt.Sprintf("%v %v", m["reason"], m["change"]))
	}
	if want := "[set 10 sold -3 set -7]"; fmt.Sprint(changes) != want {
		t.Errorf("movements %v, want %s", changes, want)
	}
	_, got = ask(t, f, "GET", "/shortages", "")
	if items := got["items"].([]any); len(items) != 1 || items[0].(map[string]any)["orderId"] != order || items[0].(map[string]any)["requested"] != 2.0 {
		t.Errorf("shortages %v", got)
	}
	// cup has movements but no stock.
	if status, _ := ask(t, f, "GET", "/stock/cup/movements", ""); status != 200 {
		t.Errorf("%d", status)
	}
	if status, _ := ask(t, f, "GET", "/stock/cup", ""); status != 404 {
		t.Errorf("%d", status)
	}
}

func TestPages(t *testing.T) {
	t.Parallel()
	f := storeFixture(t, nil)
	if _, got := ask(t, f, "GET", "/stock", ""); fmt.Sprint(got) != "map[items:[]]" {
		t.Errorf("an empty list is %v", got)
	}
	for i := range 5 {
		f.setStock(map[string]int64{fmt.Sprintf("sku-%d", i): 1})
		f.apply(paid(orderID(), item("gone", 1)))
	}
	for path, field := range map[string]string{"/stock": "sku", "/shortages": "id", "/stock/gone/movements": "id"} {
		seen := map[any]bool{}
		after, pages := "", 0
		for {
			_, got := ask(t, f, "GET", path+"?limit=2&after="+after, "")
			pages++
			for _, i := range got["items"].([]any) {
				seen[i.(map[string]any)[field]] = true
			}
			if got["next"] == nil {
				break
			}
			after = got["next"].(string)
		}
		if len(seen) != 5 || pages != 3 {
			t.Errorf("%s: %d entries in %d pages", path, len(seen), pages)
		}
	}
}

func TestWrongRequestsChangeNothing(t *testing.T) {
	t.Parallel()
	f := storeFixture(t, map[string]int64{"tea": 5})
	long := strings.Repeat("x", 65)
	for _, c := range []struct {
		name, method, path, body string
		status                   int
		detail                   string
	}{
		{"unknown SKU", "GET", "/stock/none", "", 404, "unknown SKU"},
		{"unknown SKU's movements", "GET", "/stock/none/movements", "", 404, "unknown SKU"},
		{"long SKU", "PUT", "/stock/" + long, `{"available": 1}`, 400, "longer than 64"},
		{"SKU PostgreSQL cannot hold", "GET", "/stock/a%00b", "", 400, "control character"},
		{"SKU that is no UTF-8", "GET", "/stock/%ff", "", 400, "not UTF-8"},
		{"negative", "PUT", "/stock/tea", `{"available": -1}`, 422, "from 0"},
		{"too much", "PUT", "/stock/tea", `{"available": 1000000000001}`, 422, "from 0"},
		{"more than an integer holds", "PUT", "/stock/tea", `{"available": 99999999999999999999}`, 400, "cannot unmarshal"},
		{"missing", "PUT", "/stock/tea", `{}`, 422, "must be given"},
		{"no description", "GET", "/products/tea", "", 404, "PUT /products"},
		{"a product without a name", "PUT", "/products/tea", `{}`, 422, "name must be"},
		{"a name of two lines", "PUT", "/products/tea", `{"name": "a\nb"}`, 422, "name must be"},
		{"a picture that is a script", "PUT", "/products/tea", `{"name": "Tea", "pictureUrl": "javascript:alert(1)"}`, 422, "pictureUrl must be"},
		{"a picture with a space", "PUT", "/products/tea", `{"name": "Tea", "pictureUrl": "https://a.example/b c"}`, 422, "pictureUrl must be"},
		{"null", "PUT", "/stock/tea", `{"available": null}`, 422, "must be given"},
		{"a fraction", "PUT", "/stock/tea", `{"available": 1.5}`, 400, "cannot unmarshal"},
		{"text", "PUT", "/stock/tea", `{"available": "1"}`, 400, "cannot unmarshal"},
		{"unknown field", "PUT", "/stock/tea", `{"available": 1, "reserved": 2}`, 400, `unknown field "reserved"`},
		{"no JSON", "PUT", "/stock/tea", `available=1`, 400, "not the expected JSON"},
		{"nothing", "PUT", "/stock/tea", ``, 400, "not the expected JSON"},
		{"two objects", "PUT", "/stock/tea", `{"available": 1} {"available": 2}`, 400, "unknown field"},
		{"too large", "PUT", "/stock/tea", `{"available": 1` + strings.Repeat(" ", 5000) + `}`, 413, "larger than 4096"},
		{"too large after the object", "PUT", "/stock/tea", `{"available": 1}` + strings.Repeat(" ", 5000), 413, "larger than 4096"},
		{"limit 0", "GET", "/stock?limit=0", "", 400, "limit"},
		{"limit as text", "GET", "/shortages?limit=all", "", 400, "limit"},
		{"after that is no id", "GET", "/shortages?after=x", "", 400, "after"},
		{"after that is no SKU", "GET", "/stock?after=%00", "", 400, "after"},
	} {
		t.Run(c.name, func(t *testing.T) {
			status, got := ask(t, f, c.method, c.path, c.body)
			if status != c.status || got["status"] != float64(c.status) || !strings.Contains(fmt.Sprint(got["detail"]), c.detail) {
				t.Errorf("%d %v, want %d %q", status, got, c.status, c.detail)
			}
		})
	}
	for _, kind := range []string{"", "text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=a", "application/json-patch+json"} {
		if status, got := askAs(t, f, kind, "PUT", "/stock/tea", `{"available": 1}`); status != 415 || got["detail"] != "send Content-Type: application/json" {
			t.Errorf("a body of type %q: %d %v", kind, status, got)
		}
	}
	f.wantStock(map[string]int64{"tea": 5})
	var rows int
	if err := f.pool.QueryRow(t.Context(), `SELECT (SELECT count(*) FROM stock) + (SELECT count(*) FROM stock_movements)`).Scan(&rows); err != nil || rows != 2 {
		t.Errorf("%d rows, want the stock of tea and its one movement (%v)", rows, err)
	}
}

func TestWithoutDatabaseHTTPSaysSo(t *testing.T) {
	t.Parallel()
	f := storeFixture(t, nil)
	f.pool.Close()
	if status, got := ask(t, f, "GET", "/stock", ""); status != 503 || !strings.Contains(fmt.Sprint(got["detail"]), "try again") {
		t.Errorf("%d %v", status, got)
	}
	if err := f.store.Ping(context.Background()); err == nil {
		t.Error("the ping was answered")
	}
}

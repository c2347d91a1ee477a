package inventory

import (
	"encoding/json"
	"errors"
	"fmt"
	"mime"
	"net"
	"net/http"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/rs/zerolog"

	"github.com/walpost/walpost/cdc/httpjson"
	"github.com/walpost/walpost/cdc/inbox"
)

const (
	requestTimeout = 5 * time.Second // below the server's write timeout, so that the client gets an answer while the database is slow
	maxBody        = 4 << 10
	maxAvailable   = 1_000_000_000_000
	defaultPage    = 100
	maxPage        = 1000
)

// Routes adds the HTTP interface to mux:
//
//	GET /stock                      all SKUs, by name                     ?limit=100&after=SKU
//	GET /stock/{sku}                one SKU
//	PUT /stock/{sku}                {"available": 10} sets it, also for a SKU that is new
//	GET /stock/{sku}/movements      its history, oldest first             ?limit=100&after=ID
//	GET /products/{sku}             name and picture
//	PUT /products/{sku}             {"name": "Green tea", "pictureUrl": "https://…"} sets it; the picture may be left out
//	GET /shortages                  lines that could not be served        ?limit=100&after=ID
//	GET /parked                     events that could not be applied      ?limit=100&after=ID&all=true (also the resolved)
//	GET /blocked                    partitions that halt at an event or at a gap
//
// A page has "items", and "next" if there are more: the value of after for the next page. Errors are
// application/problem+json (RFC 9457); after an error nothing has changed.
func Routes(mux *http.ServeMux, store *Store, operator *inbox.Operator, metrics *Metrics, log zerolog.Logger) {
	h := &handler{store, operator, metrics, log}
	mux.Handle("GET /stock", h.answer(h.list))
	mux.Handle("GET /stock/{sku}", h.answer(h.get))
	mux.Handle("PUT /stock/{sku}", h.answer(h.set))
	mux.Handle("GET /stock/{sku}/movements", h.answer(h.movements))
	mux.Handle("GET /products/{sku}", h.answer(h.product))
	mux.Handle("PUT /products/{sku}", h.answer(h.setProduct))
	mux.Handle("GET /shortages", h.answer(h.shortages))
	mux.Handle("GET /parked", h.answer(h.parked))
	mux.Handle("GET /blocked", h.answer(h.blocked))
}

type handler struct {
	store    *Store
	operator *inbox.Operator
	metrics  *Metrics
	log      zerolog.Logger
}

// answer returns a handler that writes handle's result as JSON, or its error.
func (h *handler) answer(handle func(*http.Request) (any, error)) http.Handler {
	return httpjson.Service{Timeout: requestTimeout, MaxBody: maxBody, Refuse: h.refuse}.Handler(func(w http.ResponseWriter, r *http.Request) error {
		body, err := handle(r)
		if err == nil {
			respond(w, http.StatusOK, "application/json", body)
		}
		return err
	})
}

func (h *handler) refuse(w http.ResponseWriter, r *http.Request, err error) {
	p := h.problem(r, err)
	respond(w, p.Status, "application/problem+json", map[string]any{
		"type": "about:blank", "title": http.StatusText(p.Status), "status": p.Status, "detail": p.Detail,
	})
}

func (h *handler) problem(r *http.Request, err error) httpjson.ProblemError {
	var p httpjson.ProblemError
	var answered *pgconn.PgError
	switch {
	case errors.As(err, &p):
		return p
	case errors.Is(err, ErrUnknownSKU):
		return httpjson.ProblemError{Status: http.StatusNotFound, Detail: "unknown SKU: PUT /stock/{sku} creates it"}
	case errors.Is(err, ErrUnknownProduct):
		return httpjson.ProblemError{Status: http.StatusNotFound, Detail: "unknown product: PUT /products/{sku} creates it"}
	case r.Context().Err() != nil, !errors.As(err, &answered):
		p = httpjson.ProblemError{Status: http.StatusServiceUnavailable, Detail: "the database does not answer: try again later"}
	default:
		p = httpjson.ProblemError{Status: http.StatusInternalServerError, Detail: "internal error: the log of the service has the cause"}
	}
	h.log.Error().Err(err).Str("method", r.Method).Str("path", r.Pattern).Int("status", p.Status).Msg("request failed")
	return p
}

// respond writes body as JSON and a line feed.
func respond(w http.ResponseWriter, status int, kind string, body any) {
	text, _ := json.Marshal(body) // these types can always be encoded
	httpjson.Write(w, status, kind, append(text, '\n'))
}

type page[T any] struct {
	Items []T    `json:"items"`
	Next  string `json:"next,omitempty"`
}

// paged returns the page for list, which was read with one item more than limit.
func paged[T any](list []T, limit int, after func(T) string) page[T] {
	if len(list) <= limit {
		return page[T]{Items: list}
	}
	return page[T]{Items: list[:limit], Next: after(list[limit-1])}
}

func (h *handler) list(r *http.Request) (any, error) {
	limit, err := pageLimit(r)
	if err != nil {
		return nil, err
	}
	after := r.FormValue("after")
	if after != "" {
		if err := checkSKU(after); err != nil {
			return nil, badRequest("after " + err.Error())
		}
	}
	list, err := h.store.List(r.Context(), after, limit+1)
	if err != nil {
		return nil, err
	}
	return paged(list, limit, func(s Stock) string { return s.SKU }), nil
}

func (h *handler) get(r *http.Request) (any, error) {
	sku, err := pathSKU(r)
	if err != nil {
		return nil, err
	}
	return h.store.Get(r.Context(), sku)
}

func (h *handler) set(r *http.Request) (any, error) {
	sku, err := pathSKU(r)
	if err != nil {
		return nil, err
	}
	var body struct {
		Available *int64 `json:"available"`
	}
	if err := readJSON(r, &body); err != nil {
		return nil, err
	}
	if body.Available == nil || *body.Available < 0 || *body.Available > maxAvailable {
		return nil, httpjson.ProblemError{Status: http.StatusUnprocessableEntity, Detail: fmt.Sprintf("available must be given, from 0 to %d", int64(maxAvailable))}
	}
	stock, err := h.store.Set(r.Context(), sku, *body.Available)
	if err != nil {
		return nil, err
	}
	h.metrics.moved(Set)
	h.log.Info().Str("sku", sku).Int64("available", stock.Available).Msg("stock set")
	return stock, nil
}

func (h *handler) movements(r *http.Request) (any, error) {
	sku, err := pathSKU(r)
	if err != nil {
		return nil, err
	}
	// A SKU without stock may still have shortages.
	answer, err := h.moved(r, sku, "")
	if err == nil && len(answer.Items) == 0 {
		_, err = h.store.Get(r.Context(), sku)
	}
	return answer, err
}

func (h *handler) shortages(r *http.Request) (any, error) { return h.moved(r, "", Shortage) }

func (h *handler) moved(r *http.Request, sku, reason string) (page[Movement], error) {
	var none page[Movement]
	limit, err := pageLimit(r)
	if err != nil {
		return none, err
	}
	after, err := pageAfter(r)
	if err != nil {
		return none, err
	}
	list, err := h.store.Movements(r.Context(), MovementOptions{SKU: sku, Reason: reason, After: after, Limit: limit + 1})
	if err != nil {
		return none, err
	}
	return paged(list, limit, func(m Movement) string { return strconv.FormatInt(m.ID, 10) }), nil
}

// parked leaves the values out, because they may contain anybody's data. `inventory parked show` prints them.
func (h *handler) parked(r *http.Request) (any, error) {
	limit, err := pageLimit(r)
	if err != nil {
		return nil, err
	}
	after, err := pageAfter(r)
	if err != nil {
		return nil, err
	}
	list, err := h.operator.List(r.Context(), inbox.ListOptions{All: r.FormValue("all") == "true", After: after, Limit: limit + 1})
	if err != nil {
		return nil, err
	}
	return paged(list, limit, func(p inbox.Parked) string { return strconv.FormatInt(p.ID, 10) }), nil
}

func (h *handler) blocked(r *http.Request) (any, error) {
	list, err := h.operator.Blocked(r.Context())
	return page[inbox.Blocked]{Items: list}, err
}

func pageAfter(r *http.Request) (int64, error) {
	s := r.FormValue("after")
	if s == "" {
		return 0, nil
	}
	after, err := strconv.ParseInt(s, 10, 64)
	if err != nil {
		return 0, badRequest("after must be the id of the page's last item")
	}
	return after, nil
}

func pageLimit(r *http.Request) (int, error) {
	s := r.FormValue("limit")
	if s == "" {
		return defaultPage, nil
	}
	limit, err := strconv.Atoi(s)
	if err != nil || limit < 1 || limit > maxPage {
		return 0, badRequest(fmt.Sprintf("limit must be a number from 1 to %d", maxPage))
	}
	return limit, nil
}

func pathSKU(r *http.Request) (string, error) {
	sku := r.PathValue("sku")
	if err := checkSKU(sku); err != nil {
		return "", badRequest("the SKU in the path " + err.Error())
	}
	return sku, nil
}

func badRequest(detail string) error {
	return httpjson.ProblemError{Status: http.StatusBadRequest, Detail: detail}
}

// readJSON reads exactly one JSON object, with no other fields than those of into.
func readJSON(r *http.Request, into any) error {
	if kind, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || kind != "application/json" {
		return httpjson.ProblemError{Status: http.StatusUnsupportedMediaType, Detail: "send Content-Type: application/json"}
	}
	err := httpjson.Decode(r.Body, into)
	var large *http.MaxBytesError
	switch {
	case errors.As(err, new(net.Error)):
		return badRequest("the body did not arrive in time")
	case errors.As(err, &large):
		return httpjson.ProblemError{Status: http.StatusRequestEntityTooLarge, Detail: fmt.Sprintf("the body is larger than %d bytes", large.Limit)}
	case err != nil:
		return badRequest("the body is not the expected JSON object: " + err.Error())
	}
	return nil
}

package orders

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"mime"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"

	"github.com/walpost/walpost/cdc/httpjson"
)

const (
	// maxBody is several times the size of the largest possible order.
	maxBody = 64 << 10
	// requestTimeout ends a request before the server's write timeout, which would end it without an answer.
	requestTimeout = 8 * time.Second

	defaultPage = 20
	maxPage     = 100
)

type api struct {
	store  *Store
	log    zerolog.Logger
	events *prometheus.CounterVec
}

// Routes adds the service's routes to mux, and its metrics to reg. A path that mux does not know gets a problem+json,
// too.
func Routes(mux *http.ServeMux, store *Store, reg prometheus.Registerer, log zerolog.Logger) {
	a := &api{store: store, log: log, events: newMetrics(reg, store)}
	Handle(mux, log, map[string]map[string]httpjson.Handler{
		"/orders":               {"POST": a.place, "GET": a.list},
		"/orders/{id}":          {"GET": a.get},
		"/orders/{id}/pay":      {"POST": a.change(Pay)},
		"/orders/{id}/cancel":   {"POST": a.change(Cancel)},
		"/orders/{id}/ship":     {"POST": a.ship},
		"/orders/{id}/complete": {"POST": a.change(Complete)},
		"/orders/{id}/history":  {"GET": a.history},
		"/statistics":           {"GET": a.statistics},
		"/schemas/{name}":       {"GET": a.schema},
	})
	mux.Handle("/", service(log).Handler(func(http.ResponseWriter, *http.Request) error {
		return httpjson.ProblemError{Status: http.StatusNotFound}
	}))
}

// Handle adds handlers to mux, by path and method. It turns their errors into this package's answers: ErrNotFound,
// InvalidError, httpjson.Problem and errors of the database.
func Handle(mux *http.ServeMux, log zerolog.Logger, paths map[string]map[string]httpjson.Handler) {
	service(log).Handle(mux, paths)
}

func service(log zerolog.Logger) httpjson.Service {
	return httpjson.Service{Timeout: requestTimeout, MaxBody: maxBody, Refuse: func(w http.ResponseWriter, r *http.Request, err error) {
		p := problemOf(err)
		if p.Status >= http.StatusInternalServerError && !errors.Is(r.Context().Err(), context.Canceled) { // otherwise the client has gone away
			log.Error().Str("route", r.Pattern).Int("status", p.Status).Err(err).Msg("request failed")
		}
		p.write(w)
	}}
}

func (a *api) place(w http.ResponseWriter, r *http.Request) error {
	var asked Request
	key, err := read(r, &asked, false)
	if err != nil {
		return err
	}
	order, err := asked.Order()
	if err != nil {
		return err
	}
	return a.once(w, r, key, http.StatusCreated, func(tx pgx.Tx) (Change, error) { return Place(r.Context(), tx, order) })
}

func (a *api) change(change func(context.Context, pgx.Tx, uuid.UUID) (Change, error)) httpjson.Handler {
	return func(w http.ResponseWriter, r *http.Request) error {
		id, err := OrderID(r)
		if err != nil {
			return err
		}
		key, err := read(r, &struct{}{}, true)
		if err != nil {
			return err
		}
		return a.once(w, r, key, http.StatusOK, func(tx pgx.Tx) (Change, error) { return change(r.Context(), tx, id) })
	}
}

func (a *api) ship(w http.ResponseWriter, r *http.Request) error {
	id, err := OrderID(r)
	if err != nil {
		return err
	}
	var asked struct {
		TrackingCode *string `json:"trackingCode"`
	}
	key, err := read(r, &asked, true)
	if err != nil {
		return err
	}
	var code string
	if asked.TrackingCode != nil {
		if code = *asked.TrackingCode; !trackingCodeForm.MatchString(code) {
			return InvalidError{{"/trackingCode", "must be 1 to 100 printable ASCII characters"}}
		}
	}
	return a.once(w, r, key, http.StatusOK, func(tx pgx.Tx) (Change, error) { return Ship(r.Context(), tx, id, code) })
}

// once makes the change and answers with the changed order, or repeats the stored answer of the key.
func (a *api) once(w http.ResponseWriter, r *http.Request, key Key, status int, change func(pgx.Tx) (Change, error)) error {
	var done Change
	answer, repeated, err := a.store.Once(r.Context(), key, func(tx pgx.Tx) (Answer, error) {
		var err error
		if done, err = change(tx); err != nil {
			return Answer{}, err
		}
		body, err := json.Marshal(done.Order)
		return Answer{OrderID: done.Order.ID, Status: status, Body: string(body)}, err
	})
	if err != nil {
		return err
	}
	if repeated {
		a.log.Debug().Stringer("order_id", answer.OrderID).Msg("answer repeated")
	} else {
		a.events.WithLabelValues(done.EventType).Inc()
		a.log.Info().Stringer("order_id", done.Order.ID).Str("order_number", strconv.FormatInt(done.Order.Number, 10)).
			Stringer("event_id", done.EventID).Str("type", done.EventType).Msg("order " + string(done.Order.Status))
	}
	if answer.Status == http.StatusCreated {
		w.Header().Set("Location", "/orders/"+answer.OrderID.String())
	}
	httpjson.Write(w, answer.Status, "application/json", []byte(answer.Body))
	return nil
}

func (a *api) get(w http.ResponseWriter, r *http.Request) error {
	id, err := OrderID(r)
	if err != nil {
		return err
	}
	order, err := a.store.Get(r.Context(), id)
	if err != nil {
		return err
	}
	return httpjson.Answer(w, order)
}

func (a *api) history(w http.ResponseWriter, r *http.Request) error {
	id, err := OrderID(r)
	if err != nil {
		return err
	}
	entries, err := a.store.History(r.Context(), id)
	if err != nil {
		return err
	}
	return httpjson.Answer(w, struct {
		OrderID uuid.UUID `json:"orderId"`
		History []Entry   `json:"history"`
	}{id, entries})
}

func (a *api) list(w http.ResponseWriter, r *http.Request) error {
	asked, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return badRequest("the query string cannot be read")
	}
	limit, err := number(asked, "limit", defaultPage, maxPage)
	if err != nil {
		return err
	}
	after, err := number(asked, "after", math.MaxInt64, math.MaxInt64)
	if err != nil {
		return err
	}
	found, err := a.store.List(r.Context(), after, int(limit)+1)
	if err != nil {
		return err
	}
	page := struct {
		Orders []Order `json:"orders"`
		Next   int64   `json:"next,omitempty,string"`
	}{Orders: found}
	if len(found) > int(limit) {
		page.Orders = found[:limit]
		page.Next = found[limit-1].Number
	}
	return httpjson.Answer(w, page)
}

func (a *api) schema(w http.ResponseWriter, r *http.Request) error {
	text, err := fs.ReadFile(schemas, "schemas/"+r.PathValue("name"))
	if err != nil {
		return httpjson.ProblemError{Status: http.StatusNotFound, Detail: "there is no such schema"}
	}
	httpjson.Write(w, http.StatusOK, "application/schema+json", text)
	return nil
}

// OrderID returns the order id in the path. An id in another form than the usual one names no order.
func OrderID(r *http.Request) (uuid.UUID, error) {
	text := r.PathValue("id")
	id, err := uuid.Parse(text)
	if err != nil || id.String() != strings.ToLower(text) {
		return uuid.Nil, ErrNotFound
	}
	return id, nil
}

func number(asked url.Values, name string, unset, most int64) (int64, error) {
	if !asked.Has(name) {
		return unset, nil
	}
	n, err := strconv.ParseInt(asked.Get(name), 10, 64)
	if err != nil || n < 1 || n > most {
		return 0, badRequest(fmt.Sprintf("%s must be a whole number from 1 to %d", name, most))
	}
	return n, nil
}

// read returns the request's key and decodes its body into into. The body may be empty if optional is set.
func read(r *http.Request, into any, optional bool) (Key, error) {
	body, err := io.ReadAll(r.Body)
	switch {
	case errors.As(err, new(*http.MaxBytesError)):
		return Key{}, httpjson.ProblemError{Status: http.StatusRequestEntityTooLarge, Detail: fmt.Sprintf("the body may have at most %d bytes", maxBody)}
	case err != nil:
		return Key{}, badRequest("the body ended early")
	}
	if optional && len(body) == 0 {
		return keyOf(r, body)
	}
	if kind, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || kind != "application/json" {
		return Key{}, httpjson.ProblemError{Status: http.StatusUnsupportedMediaType, Detail: "send Content-Type: application/json"}
	}
	if err := decode(body, into); err != nil {
		return Key{}, err
	}
	return keyOf(r, body)
}

// ReadJSON reads a request's body into into: one JSON object without unknown fields.
func ReadJSON(r *http.Request, into any) error {
	_, err := read(r, into, false)
	return err
}

// decode reads exactly one JSON object without fields unknown to into.
func decode(body []byte, into any) error {
	err := httpjson.Decode(bytes.NewReader(body), into)
	switch {
	case errors.As(err, new(*httpjson.TrailingError)):
		return badRequest("the body must be one JSON object and nothing after it")
	case err != nil:
		return badRequest("the body cannot be read: " + strings.TrimPrefix(err.Error(), "json: "))
	}
	return nil
}

func keyOf(r *http.Request, body []byte) (Key, error) {
	values := r.Header.Values("Idempotency-Key")
	if len(values) == 0 {
		return Key{}, nil
	}
	if len(values) > 1 || !keyForm.MatchString(values[0]) {
		return Key{}, badRequest("Idempotency-Key must be one value of 1 to 255 printable ASCII characters without space, such as a UUID")
	}
	return Key{values[0], sha256.Sum256(fmt.Appendf(nil, "%s %s\n%s", r.Method, r.URL.Path, body))}, nil
}

package notify

import (
	"fmt"
	"net/http"
	"slices"
	"strings"

	"github.com/rs/zerolog"

	"github.com/walpost/walpost/cdc/httpjson"
	"github.com/walpost/walpost/orders"
	"github.com/walpost/walpost/orders/notify/render"
)

// Routes adds to mux:
//
//	GET /customers/{id}/notifications   a customer's settings: {"kinds": {"confirmed": true, …}, "format": "html", "language": "en"}
//	PUT /customers/{id}/notifications   changes them for later notifications; a field that is left out gets its default, as shown above
//	GET /orders/{id}/mails              the mails of an order, with content and every attempt
//	GET /orders/{id}/webhooks           the webhooks of an order, in the same form
func Routes(mux *http.ServeMux, store *Store, log zerolog.Logger) {
	orders.Handle(mux, log, map[string]map[string]httpjson.Handler{
		"/customers/{id}/notifications": {"GET": store.getSettings, "PUT": store.putSettings},
		"/orders/{id}/mails":            {"GET": store.byOrder(ChannelMail)},
		"/orders/{id}/webhooks":         {"GET": store.byOrder(ChannelWebhook)},
	})
}

func customer(r *http.Request) (string, error) {
	id := r.PathValue("id")
	if !customerForm.MatchString(id) {
		return "", orders.InvalidError{{Pointer: "", Detail: "a customer's id is 1 to 100 printable ASCII characters without space"}}
	}
	return id, nil
}

func (s *Store) getSettings(w http.ResponseWriter, r *http.Request) error {
	id, err := customer(r)
	if err != nil {
		return err
	}
	set, err := s.Settings(r.Context(), id)
	if err != nil {
		return err
	}
	return httpjson.Answer(w, set)
}

func (s *Store) putSettings(w http.ResponseWriter, r *http.Request) error {
	id, err := customer(r)
	if err != nil {
		return err
	}
	asked := Settings{Format: "html", Language: render.Languages[0]}
	if err := orders.ReadJSON(r, &asked); err != nil {
		return err
	}
	if err := asked.check(); err != nil {
		return err
	}
	if err := s.SetSettings(r.Context(), id, asked); err != nil {
		return err
	}
	return httpjson.Answer(w, asked)
}

// check returns every mistake in the settings, and sets each kind that was left out to true.
func (s *Settings) check() error {
	var faults orders.InvalidError
	all := map[string]bool{}
	for _, kind := range kinds {
		all[kind] = true
	}
	for kind, on := range s.Kinds {
		if _, known := all[kind]; !known {
			faults = append(faults, orders.Fault{Pointer: "/kinds", Detail: fmt.Sprintf("%q is none of confirmed, rejected, shipped", clean(kind, 40))})
		}
		all[kind] = on
	}
	if s.Format != "html" && s.Format != "text" {
		faults = append(faults, orders.Fault{Pointer: "/format", Detail: "must be html or text"})
	}
	if !slices.Contains(render.Languages, s.Language) {
		faults = append(faults, orders.Fault{Pointer: "/language", Detail: "must be one of " + strings.Join(render.Languages, ", ")})
	}
	s.Kinds = all
	if faults != nil {
		return faults
	}
	return nil
}

func (s *Store) byOrder(channel string) httpjson.Handler {
	return func(w http.ResponseWriter, r *http.Request) error {
		id, err := orders.OrderID(r)
		if err != nil {
			return err
		}
		var exists bool
		if err := s.pool.QueryRow(r.Context(), `SELECT EXISTS (SELECT FROM orders WHERE id = $1)`, id).Scan(&exists); err != nil {
			return fmt.Errorf("look for the order: %w", err)
		}
		if !exists {
			return orders.ErrNotFound
		}
		list, err := s.ByOrder(r.Context(), channel, id)
		if err != nil {
			return err
		}
		return httpjson.Answer(w, map[string]any{"notifications": list})
	}
}

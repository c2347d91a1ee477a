// Package httpjson serves JSON over HTTP with handlers that return their errors.
package httpjson

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"slices"
	"strings"
	"time"
)

// A Handler answers a request, or returns the reason why it cannot.
type Handler func(http.ResponseWriter, *http.Request) error

// A ProblemError is an error whose status and detail the client may see.
type ProblemError struct {
	Status int
	Detail string
}

func (p ProblemError) Error() string { return p.Detail }

// A Service has the limits and the error answer that the handlers of one service have in common.
type Service struct {
	Timeout time.Duration                                   // longest time for a request; must be under the server's write timeout, which would end it without an answer
	MaxBody int64                                           // largest body of a request in bytes; to read more is an *http.MaxBytesError
	Refuse  func(http.ResponseWriter, *http.Request, error) // answers with those parts of a handler's error that the client may see
}

// Handler returns h as an http.Handler with the service's limits.
func (s Service) Handler(h Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithTimeout(r.Context(), s.Timeout)
		defer cancel()
		r = r.WithContext(ctx)
		r.Body = http.MaxBytesReader(w, r.Body, s.MaxBody)
		if err := h(w, r); err != nil {
			s.Refuse(w, r, err)
		}
	})
}

// Handle adds handlers to mux, by path and method. Other methods of a path are answered with a ProblemError.
func (s Service) Handle(mux *http.ServeMux, paths map[string]map[string]Handler) {
	for path, methods := range paths {
		var allowed []string
		for method, h := range methods {
			mux.Handle(method+" "+path, s.Handler(h))
			allowed = append(allowed, method)
		}
		slices.Sort(allowed)
		mux.Handle(path, s.Handler(func(w http.ResponseWriter, _ *http.Request) error {
			w.Header().Set("Allow", strings.Join(allowed, ", "))
			return ProblemError{Status: http.StatusMethodNotAllowed}
		}))
	}
}

// A TrailingError is returned by Decode when something follows the object.
type TrailingError struct{ error }

func (e *TrailingError) Unwrap() error { return e.error }

// Decode reads exactly one JSON object into into. A field that into does not have is an error.
func Decode(body io.Reader, into any) error {
	decoder := json.NewDecoder(body)
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(into); err != nil {
		return err
	}
	switch err := decoder.Decode(&struct{}{}); {
	case errors.Is(err, io.EOF):
		return nil
	case err == nil:
		return &TrailingError{errors.New("there is more than one object")}
	default:
		return &TrailingError{err}
	}
}

// Answer writes v as JSON with the status 200.
func Answer(w http.ResponseWriter, v any) error {
	body, err := json.Marshal(v)
	if err != nil {
		return err
	}
	Write(w, http.StatusOK, "application/json", body)
	return nil
}

// Write writes an answer with a body of the media type kind. It ignores errors of the connection, because the client is gone then.
func Write(w http.ResponseWriter, status int, kind string, body []byte) {
	w.Header().Set("Content-Type", kind)
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(status)
	_, _ = w.Write(body)
}

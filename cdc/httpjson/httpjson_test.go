package httpjson_test

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/walpost/walpost/cdc/httpjson"
)

// TestRequestEndsWithItsTimeout: the handler's context ends, and the client still gets the error answer.
func TestRequestEndsWithItsTimeout(t *testing.T) {
	service := httpjson.Service{Timeout: time.Millisecond, Refuse: func(w http.ResponseWriter, r *http.Request, err error) {
		if !errors.Is(err, context.DeadlineExceeded) || !errors.Is(r.Context().Err(), context.DeadlineExceeded) {
			t.Errorf("refused with %v, in a context that says %v", err, r.Context().Err())
		}
		httpjson.Write(w, http.StatusServiceUnavailable, "text/plain", nil)
	}}
	w := httptest.NewRecorder()
	service.Handler(func(_ http.ResponseWriter, r *http.Request) error {
		select {
		case <-r.Context().Done():
			return r.Context().Err()
		case <-time.After(10 * time.Second):
			return errors.New("no deadline")
		}
	}).ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), "GET", "/", nil))
	if w.Code != http.StatusServiceUnavailable {
		t.Errorf("answered %d", w.Code)
	}
}

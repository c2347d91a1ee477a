package orders

import (
	"encoding/json"
	"errors"
	"net/http"
	"slices"

	"github.com/jackc/pgerrcode"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/walpost/walpost/cdc/httpjson"
	"github.com/walpost/walpost/cdc/outbox"
)

// problem is an error as the client sees it (RFC 9457). It has no type, which means that status and title describe it.
type problem struct {
	Title  string       `json:"title"`
	Status int          `json:"status"`
	Detail string       `json:"detail,omitempty"`
	Errors InvalidError `json:"errors,omitempty"`
}

func badRequest(detail string) error {
	return httpjson.ProblemError{Status: http.StatusBadRequest, Detail: detail}
}

// problemOf returns the part of an error that a client may see. An error that the client did not cause becomes 503 if a
// retry may help, and otherwise 500 without details.
func problemOf(err error) problem {
	var (
		known   httpjson.ProblemError
		invalid InvalidError
		state   *StateError
		pgErr   *pgconn.PgError
	)
	switch {
	case errors.As(err, &known):
		return problem{Status: known.Status, Detail: known.Detail}
	case errors.As(err, &invalid):
		return problem{Status: http.StatusUnprocessableEntity, Detail: "the request is invalid", Errors: invalid}
	case errors.Is(err, ErrKeyReused):
		return problem{Status: http.StatusUnprocessableEntity, Detail: ErrKeyReused.Error()}
	case errors.Is(err, ErrNotFound):
		return problem{Status: http.StatusNotFound, Detail: ErrNotFound.Error()}
	case errors.As(err, &state):
		return problem{Status: http.StatusConflict, Detail: state.Error()}
	case errors.Is(err, outbox.ErrRejected), errors.As(err, &pgErr) && !passes(pgErr.Code):
		return problem{Status: http.StatusInternalServerError}
	}
	return problem{
		Status: http.StatusServiceUnavailable,
		Detail: "the database did not answer; a change may or may not have happened: repeat the request with the same Idempotency-Key to know",
	}
}

// passes reports whether an SQLSTATE comes from a server that is busy, starting or stopping, so that a retry may
// succeed.
func passes(code string) bool {
	return code == pgerrcode.LockNotAvailable || slices.ContainsFunc([]string{
		pgerrcode.ConnectionException, pgerrcode.InvalidTransactionState, pgerrcode.TransactionRollback,
		pgerrcode.InsufficientResources, pgerrcode.OperatorIntervention,
	}, func(class string) bool { return class[:2] == code[:2] })
}

func (p problem) write(w http.ResponseWriter) {
	p.Title = http.StatusText(p.Status)
	if p.Status == http.StatusServiceUnavailable {
		w.Header().Set("Retry-After", "1")
	}
	body, _ := json.Marshal(p) // strings and an int
	httpjson.Write(w, p.Status, "application/problem+json", body)
}

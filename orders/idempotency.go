package orders

import (
	"context"
	"errors"
	"fmt"
	"regexp"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
)

// Key is a name that the client gives a request, so that it may send the request again. The zero Key names no request.
type Key struct {
	Name    string
	Request [32]byte // a digest of the request
}

// Answer is the answer to a request.
type Answer struct {
	OrderID uuid.UUID
	Status  int
	Body    string
}

// ErrKeyReused is returned when the key was used for another request before.
var ErrKeyReused = errors.New("this Idempotency-Key belongs to another request: take a new key for a new request")

var keyForm = regexp.MustCompile(`^[!-~]{1,255}$`)

// Once runs change in a transaction and stores its answer under key in the same transaction. If key has an answer
// already, Once returns that answer and does not run change. If another transaction uses the same key, Once waits for
// its end. After an error, from change or from the database, nothing is stored, and the key is free. But if the
// connection is lost during COMMIT, the caller does not know whether everything or nothing was committed.
func (s *Store) Once(ctx context.Context, key Key, change func(tx pgx.Tx) (Answer, error)) (answer Answer, repeated bool, err error) {
	err = pgx.BeginFunc(ctx, s.pool, func(tx pgx.Tx) (err error) {
		if key.Name == "" {
			answer, err = change(tx)
			return err
		}
		// The unique key is the lock: this INSERT waits until another transaction with the same key has ended.
		taken, err := tx.Exec(ctx, `INSERT INTO idempotency_keys (key, request) VALUES ($1, $2) ON CONFLICT (key) DO NOTHING`, key.Name, key.Request[:])
		if err != nil {
			return fmt.Errorf("take the idempotency key: %w", err)
		}
		if repeated = taken.RowsAffected() == 0; repeated {
			answer, err = kept(ctx, tx, key)
			return err
		}
		if answer, err = change(tx); err != nil {
			return err
		}
		_, err = tx.Exec(ctx, `UPDATE idempotency_keys SET order_id = $2, status = $3, answer = $4 WHERE key = $1`,
			key.Name, answer.OrderID, answer.Status, answer.Body)
		if err != nil {
			return fmt.Errorf("keep the answer: %w", err)
		}
		return nil
	})
	return answer, repeated, err
}

func kept(ctx context.Context, tx pgx.Tx, key Key) (Answer, error) {
	var a Answer
	var request []byte
	err := tx.QueryRow(ctx, `SELECT request, order_id, status, answer FROM idempotency_keys WHERE key = $1`, key.Name).Scan(&request, &a.OrderID, &a.Status, &a.Body)
	switch {
	case err != nil:
		return Answer{}, fmt.Errorf("read the kept answer: %w", err)
	case string(request) != string(key.Request[:]):
		return Answer{}, ErrKeyReused
	}
	return a, nil
}

package app

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/walpost/walpost/cdc/identity"
)

// healthcheckTimeout is longer than readyTimeout, so that a server that is not ready can still answer with the reason.
const healthcheckTimeout = readyTimeout + time.Second

// Healthcheck is the command that asks a running process whether it is ready. An image holds one of our programs and no
// other, so a container's health check has no other program to use.
type Healthcheck struct {
	URL string `arg:"" help:"Send a GET request to this URL: http://127.0.0.1:8080/readyz, for example."`
}

// Run returns nil if the answer is 200, and otherwise an error with the answer.
func (h *Healthcheck) Run(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, healthcheckTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, h.URL, nil)
	if err != nil { // the error would quote the URL
		return errors.New("healthcheck: this is not a URL: write it as in http://127.0.0.1:8080/readyz")
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return fmt.Errorf("healthcheck: %w", err)
	}
	defer res.Body.Close()
	said, err := io.ReadAll(io.LimitReader(res.Body, 4<<10))
	if err != nil {
		return fmt.Errorf("healthcheck: read the answer of %s: %w", identity.HideURL(h.URL), err)
	}
	if res.StatusCode != http.StatusOK {
		return fmt.Errorf("%s answers %s: %s", identity.HideURL(h.URL), res.Status, strings.TrimSpace(string(said)))
	}
	return nil
}

package inventory

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"time"
	"unicode"

	"github.com/jackc/pgx/v5"

	"github.com/walpost/walpost/cdc/httpjson"
)

// ErrUnknownProduct is returned for a SKU that has no description.
var ErrUnknownProduct = errors.New("unknown product")

// Product describes a SKU for people. The stock does not use it.
type Product struct {
	SKU        string    `json:"sku"`
	Name       string    `json:"name"`
	PictureURL *string   `json:"pictureUrl,omitempty"`
	UpdatedAt  time.Time `json:"updatedAt"`
}

// Product returns the product of sku, or ErrUnknownProduct.
func (s *Store) Product(ctx context.Context, sku string) (Product, error) {
	rows, _ := s.pool.Query(ctx, `SELECT sku, name, picture_url, updated_at FROM products WHERE sku = $1`, sku)
	p, err := pgx.CollectExactlyOneRow(rows, pgx.RowToStructByPos[Product])
	if errors.Is(err, pgx.ErrNoRows) {
		err = ErrUnknownProduct
	}
	if err != nil {
		return Product{}, fmt.Errorf("product %s: %w", sku, err)
	}
	return p, nil
}

// SetProduct sets the name and picture of p.SKU.
func (s *Store) SetProduct(ctx context.Context, p Product) (Product, error) {
	rows, _ := s.pool.Query(ctx, `INSERT INTO products (sku, name, picture_url) VALUES ($1, $2, $3)
		ON CONFLICT (sku) DO UPDATE SET name = $2, picture_url = $3, updated_at = clock_timestamp() RETURNING sku, name, picture_url, updated_at`,
		p.SKU, p.Name, p.PictureURL)
	p, err := pgx.CollectExactlyOneRow(rows, pgx.RowToStructByPos[Product])
	if err != nil {
		return Product{}, fmt.Errorf("set the product: %w", err)
	}
	return p, nil
}

func (h *handler) product(r *http.Request) (any, error) {
	sku, err := pathSKU(r)
	if err != nil {
		return nil, err
	}
	return h.store.Product(r.Context(), sku)
}

func (h *handler) setProduct(r *http.Request) (any, error) {
	sku, err := pathSKU(r)
	if err != nil {
		return nil, err
	}
	var body struct {
		Name       string  `json:"name"`
		PictureURL *string `json:"pictureUrl"`
	}
	if err := readJSON(r, &body); err != nil {
		return nil, err
	}
	if body.Name == "" || len(body.Name) > 200 || strings.ContainsFunc(body.Name, unicode.IsControl) {
		return nil, httpjson.ProblemError{Status: http.StatusUnprocessableEntity, Detail: "name must be 1 to 200 bytes without control characters"}
	}
	if body.PictureURL != nil && !isPicture(*body.PictureURL) {
		return nil, httpjson.ProblemError{Status: http.StatusUnprocessableEntity, Detail: "pictureUrl must be a URL as in https://shop.example/tea.jpg, of at most 2000 bytes"}
	}
	product, err := h.store.SetProduct(r.Context(), Product{SKU: sku, Name: body.Name, PictureURL: body.PictureURL})
	if err != nil {
		return nil, err
	}
	h.log.Info().Str("sku", sku).Msg("product set")
	return product, nil
}

func isPicture(text string) bool {
	u, err := url.Parse(text)
	return err == nil && len(text) <= 2000 && (u.Scheme == "https" || u.Scheme == "http") && u.Host != "" && u.User == nil &&
		!strings.ContainsFunc(text, func(r rune) bool { return r <= ' ' || r > '~' })
}

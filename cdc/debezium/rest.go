package debezium

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
)

// connect asks the REST interface of a Kafka Connect.
type connect struct {
	client *http.Client
	base   *url.URL
}

func newConnect(client *http.Client, base string) (*connect, error) {
	u, err := url.Parse(base)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
		return nil, errors.New("the URL of Connect is no URL: write http://host:8083")
	}
	u.RawQuery, u.Fragment = "", ""
	return &connect{client, u}, nil
}

func (c *connect) host() string { return c.base.Host }

// answerError is an answer of Connect that is no success.
type answerError struct {
	code int
	said string
}

func (e *answerError) Error() string { return e.said }

// missing reports whether Connect has answered 404.
func missing(err error) bool {
	var answer *answerError
	return errors.As(err, &answer) && answer.code == http.StatusNotFound
}

// get returns the body of the answer to GET. what is the first part of the path, with the query; parts are names, which
// may have any letters. The error does not contain the password of the URL.
func (c *connect) get(ctx context.Context, what string, parts ...string) ([]byte, error) {
	what, query, _ := strings.Cut(what, "?")
	path := []string{what}
	for _, part := range parts {
		path = append(path, url.PathEscape(part))
	}
	u := c.base.JoinPath(path...)
	u.RawQuery = query
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return nil, errors.New("the URL of Connect is no URL: write http://host:8083")
	}
	request.Header.Set("Accept", "application/json")
	answer, err := c.client.Do(request)
	if err != nil {
		var of *url.Error
		if errors.As(err, &of) {
			err = of.Err // url.Error repeats the URL
		}
		return nil, fmt.Errorf("read Connect at %s: %w: check the address, and that Connect runs", c.host(), err)
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(io.LimitReader(answer.Body, LargestInput+1))
	switch {
	case err != nil:
		return nil, fmt.Errorf("read Connect at %s: %w: run it again", c.host(), err)
	case answer.StatusCode == http.StatusUnauthorized || answer.StatusCode == http.StatusForbidden:
		return nil, fmt.Errorf("kafka connect at %s refuses us (%s): write user and password in the URL, https://user:password@host:8083", c.host(), answer.Status)
	case answer.StatusCode != http.StatusOK:
		var why struct{ Message string }
		said := "check the address, and that Connect has finished its start"
		if json.Unmarshal(text, &why) == nil && why.Message != "" {
			said = why.Message + ": " + said
		}
		return nil, &answerError{answer.StatusCode, fmt.Sprintf("kafka connect at %s answers %s: %s", c.host(), answer.Status, said)}
	case len(text) > LargestInput:
		return nil, fmt.Errorf("the answer of Connect at %s has more than %d bytes: save the JSON of the connector in a file", c.host(), LargestInput)
	}
	return text, nil
}

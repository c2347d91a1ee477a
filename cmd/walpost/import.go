package main

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/walpost/walpost/cdc/debezium"
	"github.com/walpost/walpost/cdc/pipeline"
	"github.com/walpost/walpost/cdc/plain"
	"github.com/walpost/walpost/cmd/internal/app"
)

type importCmd struct {
	File       string   `arg:"" optional:"" help:"Read this file: the JSON of a connector as it is sent to Connect, its .properties file, Strimzi's KafkaConnector, or Debezium Server's application.properties. - reads from standard input."`
	ConnectURL string   `name:"connect-url" env:"WALPOST_CONNECT_URL" placeholder:"URL" help:"Read the connector from a running Kafka Connect: http://host:8083, with user and password if it asks for them."`
	ConnectCA  string   `name:"connect-ca-file" placeholder:"FILE" help:"With --connect-url: the certificates of the authorities that sign Connect's certificate (PEM). The default is the system's authorities."`
	Connector  string   `placeholder:"NAME" help:"With --connect-url: read the connector with this name, if Connect has several with an outbox router."`
	Worker     string   `placeholder:"FILE" help:"Read the worker's configuration from this .properties file: its converters count where the connector has none, and its bootstrap.servers."`
	Brokers    []string `placeholder:"HOST:PORT" help:"Write these brokers into the configuration. The default is those of the worker or of Debezium Server."`
	Table      string   `placeholder:"SCHEMA.NAME" help:"Import this table as the outbox, if the connector captures several."`

	Check      bool   `help:"Import nothing: compare the newest records of the pipeline's topics with those that walpost would write for the same rows. It reads the configuration that import has printed (--config), and changes nothing."`
	Records    int    `default:"1000" help:"With --check: compare about this many records in all, the newest of each partition."`
	ShowValues bool   `name:"show-values" help:"With --check: show the values of records that differ, shortened. The default shows where they begin to differ."`
	ReadURL    string `name:"read-url" env:"WALPOST_READ_URL" help:"With --check: connect to PostgreSQL with this URL, as a role that may SELECT from the outbox table. The relay's role may not. The default is WALPOST_ADMIN_URL, or source.url where that is empty."`
}

func (c *importCmd) Run(p *process) error {
	if c.Check {
		return c.check(p)
	}
	connector, err := c.read(p)
	if err != nil {
		return fmt.Errorf("import: %w", err)
	}
	o := debezium.ImportOptions{Brokers: c.Brokers, Table: c.Table}
	if c.Worker != "" {
		text, err := os.ReadFile(c.Worker)
		if err == nil {
			o.Worker, err = debezium.ReadWorker(text)
		}
		if err != nil {
			return labelled("--worker", err)
		}
	}
	imported, err := debezium.Import(connector, o)
	if err != nil {
		return labelled("import", err)
	}
	if _, err := p.stdout.Write(imported.YAML()); err != nil {
		return err
	}
	if imported.Unsupported() > 0 {
		return app.ExitError(1)
	}
	return nil
}

// labelled returns the error with the label before each of its sentences.
func labelled(label string, err error) error {
	var errs []error
	for line := range strings.SplitSeq(err.Error(), "\n") {
		errs = append(errs, errors.New(label+": "+line))
	}
	return errors.Join(errs...)
}

// read returns the connector that the flags name.
func (c *importCmd) read(p *process) (*debezium.Connector, error) {
	switch {
	case c.File != "" && c.ConnectURL != "":
		return nil, errors.New("a file and --connect-url are both there: keep one of them")
	case c.ConnectURL != "":
		client, err := c.client()
		if err != nil {
			return nil, err
		}
		defer client.CloseIdleConnections()
		return debezium.ReadConnect(p.ctx, client, c.ConnectURL, c.Connector)
	case c.Connector != "" || c.ConnectCA != "":
		return nil, errors.New("--connector and --connect-ca-file are for --connect-url: add that, or leave them out")
	case c.File == "":
		return nil, errors.New("there is no input: name the connector's JSON, its .properties file or Debezium Server's application.properties, or add --connect-url http://host:8083")
	}
	in := p.stdin
	if c.File != "-" {
		file, err := os.Open(c.File)
		if err != nil {
			return nil, fmt.Errorf("%w: name the connector's JSON or .properties file", err)
		}
		defer file.Close()
		in = file
	}
	text, err := io.ReadAll(io.LimitReader(in, debezium.LargestInput+1))
	if err != nil {
		return nil, fmt.Errorf("read the connector: %w: name the connector's JSON or .properties file", err)
	}
	return debezium.ReadConnector(text)
}

// client returns an HTTP client that trusts the authorities of --connect-ca-file.
func (c *importCmd) client() (*http.Client, error) {
	transport := &http.Transport{Proxy: http.ProxyFromEnvironment, TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS12}}
	if c.ConnectCA != "" {
		text, err := os.ReadFile(c.ConnectCA)
		if err != nil {
			return nil, fmt.Errorf("--connect-ca-file: %w: name the file with the authorities' certificates", err)
		}
		transport.TLSClientConfig.RootCAs = x509.NewCertPool()
		if !transport.TLSClientConfig.RootCAs.AppendCertsFromPEM(text) {
			return nil, errors.New("--connect-ca-file: the file holds no certificate: name one in PEM")
		}
	}
	return &http.Client{Transport: transport, Timeout: 30 * time.Second}, nil
}

// check compares records that are in Kafka with those that walpost would write, and prints each difference.
func (c *importCmd) check(p *process) error {
	if c.File != "" || c.ConnectURL != "" {
		return errors.New("import: --check reads the configuration that import has printed: name it with --config, and leave the connector out")
	}
	if c.Records < 1 {
		return errors.New("import: --records: compare at least 1 record")
	}
	cfg, err := p.config()
	if err != nil {
		return err
	}
	pl, err := p.pipeline()
	if err != nil {
		return err
	}
	times, progress := map[string]int{}, app.NewProgress(p.stderr)
	p.stdout = progress.Beside(p.stdout)
	tell := func(s pipeline.Step) { progress.At(s.Done, s.Total, s.Unit) }
	o := pipeline.CompareOptions{Records: c.Records, Values: c.ShowValues, Progress: tell, Differs: func(d pipeline.Difference) {
		if times[d.Part]++; times[d.Part] <= shownDifferences {
			p.differs(d)
		}
	}}
	if o.ReadURL = p.ownURL(cfg, "READ_URL", c.ReadURL); o.ReadURL != "" {
		o.ReadKey = "--read-url (WALPOST_READ_URL)"
	} else if o.ReadURL = p.ownURL(cfg, "ADMIN_URL", p.getenv("WALPOST_ADMIN_URL")); o.ReadURL != "" {
		o.ReadKey = "WALPOST_ADMIN_URL"
	}
	done, err := pl.Compare(p.ctx, o)
	progress.Close()
	if err != nil {
		return err
	}
	for _, part := range slices.Sorted(maps.Keys(times)) {
		if more := times[part] - shownDifferences; more > 0 {
			p.say("and %d more such differences: %s", more, plain.Line(part))
		}
	}
	if len(done.Topics) > 0 {
		p.say("compared %d records, the newest of each partition of %s: %d are equal, %d differ", done.Records, strings.Join(done.Topics, ", "), done.Equal, done.Different)
	}
	if done.Others > 0 {
		p.say("not compared: topics whose newest records have no header id, which the router writes: %d", done.Others)
	}
	if done.Gone > 0 {
		p.say("not compared: %d records, because the table no longer has their rows", done.Gone)
	}
	if done.Foreign > 0 {
		p.say("not compared: %d records without a header id, which the router has not written", done.Foreign)
	}
	switch {
	case done.Different > 0:
		return app.ExitError(1)
	case done.Equal == 0:
		return errors.New("import: no record was compared, so that nothing is shown: insert a row while the connector runs and keep it, or add --records with a larger number")
	}
	return nil
}

// shownDifferences is how many differences of the same part of a record are printed.
const shownDifferences = 5

// differs prints a difference between a record and what walpost would write.
func (p *process) differs(d pipeline.Difference) {
	p.say("%s, partition %d, offset %d, event %s: %s: %s in Kafka, %s by walpost", d.Topic, d.Partition, d.Offset, plain.Line(d.ID), plain.Line(d.Part), plain.Line(d.Kafka), plain.Line(d.Walpost))
}

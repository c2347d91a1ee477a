package config_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/goccy/go-yaml"
	"github.com/rs/zerolog"

	"github.com/walpost/walpost/cdc/cdctest"
	"github.com/walpost/walpost/cdc/config"
	"github.com/walpost/walpost/cdc/identity"
)

// secretive returns a configuration with a secret in every place that can hold one, in the forms of URLs that people write.
func secretive(t *testing.T) (all []config.Config) {
	t.Helper()
	for _, address := range []string{
		"postgres://walpost:" + cdctest.Canary + "@host:5432/orders?sslmode=require",
		"postgres://walpost:" + url.PathEscape("a /@'"+cdctest.Canary) + "@host/orders",
		"postgres://walpost:a%zz" + cdctest.Canary + "@host/orders",
		"postgres://walpost:a#" + cdctest.Canary + "@host/orders",
		"postgres://walpost@host/orders?password=" + cdctest.Canary,
		"postgres://walpost@host/orders?sslpassword=" + cdctest.Canary + "&password_command=print%20" + cdctest.Canary,
		"postgres://walpost:" + cdctest.Canary + "@one:1,two:2/orders",
		"host=host user=walpost password='it\\'s " + cdctest.Canary + "'",
		"host=host password = " + cdctest.Canary,
		cdctest.Canary,
	} {
		cfg, env := config.Default(), map[string]string{
			"WALPOST_PIPELINE": "orders", "WALPOST_SOURCE_URL": address, "WALPOST_CLEANUP_URL": address, "WALPOST_KAFKA_BROKERS": "host:9092",
			"WALPOST_KAFKA_AGGREGATE_TYPES": "order", "WALPOST_KAFKA_SASL_MECHANISM": "plain", "WALPOST_KAFKA_SASL_USERNAME": "walpost", "WALPOST_KAFKA_SASL_PASSWORD": cdctest.Canary,
		}
		cfgs, err := config.Load("", func(name string) string { return env[name] })
		cdctest.NoSecret(t, "the error of "+cdctest.Canary[:3], fmt.Sprint(err))
		if err == nil {
			cfg = cfgs[0]
		}
		cfg.Source.URL, cfg.Cleanup.URL, cfg.Kafka.SASL.ClientSecret = address, address, cdctest.Canary
		all = append(all, cfg)
	}
	return all
}

func TestNothingPrintsASecretOfAConfiguration(t *testing.T) {
	if mode := os.Getenv("CONFIG_TEST_PANIC"); mode != "" {
		crash(mode, secretive(t)[0])
	}
	for i, cfg := range secretive(t) {
		for _, v := range []any{cfg, &cfg, cfg.Source, &cfg.Source, cfg.Cleanup, []config.Config{cfg}, map[string]config.Source{"a": cfg.Source}, struct{ C *config.Config }{&cfg}} {
			for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%d"} {
				cdctest.NoSecret(t, fmt.Sprintf("%d: %T with %s", i, v, verb), fmt.Sprintf(verb, v))
			}
			text, err := json.Marshal(v)
			yamlText, yamlErr := yaml.Marshal(v)
			if err := errors.Join(err, yamlErr); err != nil {
				t.Error(err)
			}
			var log bytes.Buffer
			logger := zerolog.New(&log)
			logger.Info().Interface("v", v).Any("w", v).Msg("")
			cdctest.NoSecret(t, fmt.Sprintf("%d: %T", i, v), string(text)+string(yamlText)+log.String())
		}
	}
	cfg := secretive(t)[0]
	if said := fmt.Sprintf("%+v", cfg); !strings.Contains(said, "walpost:xxxxx@host:5432/orders?sslmode=require") || !strings.Contains(said, "Pipeline:orders") {
		t.Errorf("it does not show the rest: %s", said)
	}
	if cfg.Source.URL == "" || cdctest.Leak(cfg.Source.URL) == "" {
		t.Errorf("printing has changed the configuration")
	}
}

func crash(mode string, cfg config.Config) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		switch mode {
		case "value":
			panic(cfg)
		case "pointer":
			panic(&cfg)
		case "text":
			panic(fmt.Sprintf("%+v", cfg))
		case "error":
			panic(fmt.Errorf("configuration %#v", cfg))
		}
	}()
	<-done
}

// TestAPanicShowsNoSecret: not in a goroutine with the configuration among the arguments or as the value, and not in any goroutine's stack.
func TestAPanicShowsNoSecret(t *testing.T) {
	for _, mode := range []string{"value", "pointer", "text", "error"} {
		cmd := exec.Command(os.Args[0], "-test.run", "TestNothingPrintsASecretOfAConfiguration")
		cmd.Env = append(os.Environ(), "CONFIG_TEST_PANIC="+mode, "GOTRACEBACK=all")
		out, err := cmd.CombinedOutput()
		if err == nil || !strings.Contains(string(out), "panic: ") || !strings.Contains(string(out), "goroutine ") {
			t.Errorf("%s: no panic: %v\n%s", mode, err, out)
		}
		cdctest.NoSecret(t, "a panic with "+mode, string(out))
	}
}

func TestASecretIsNeverPrinted(t *testing.T) {
	secret := identity.Secret(cdctest.Canary)
	for _, v := range []any{secret, &secret, []identity.Secret{secret}, map[string]identity.Secret{"a": secret}, struct{ S identity.Secret }{secret}, fmt.Errorf("a %v, %q", secret, secret)} {
		text, _ := json.Marshal(v)
		yamlText, _ := yaml.Marshal(v)
		cdctest.NoSecret(t, fmt.Sprintf("%T", v), fmt.Sprintf("%v %+v %#v %q %x", v, v, v, v, v)+string(text)+string(yamlText))
	}
}

package config

import (
	"cmp"
	"maps"
	"reflect"
	"regexp"
	"strings"

	"github.com/goccy/go-yaml"

	"github.com/walpost/walpost/cdc/identity"
)

// Setting is a key of a configuration with its value. It holds no secret: a URL has no passwords, and other secrets are ***.
type Setting struct {
	Key     string `json:"key"` // source.url
	Value   string `json:"value"`
	Default string `json:"default"`
	// Origin says where the value is from: FromDefault, FromProgram, file NAME, file NAME, pipelines[N], or environment
	// NAME.
	Origin string `json:"origin"`
	Doc    string `json:"doc"`
}

// The origins of values that are neither in a file nor in the environment.
const (
	FromDefault = "default"
	FromProgram = "program" // the Go program that has the Config set it
)

// Changed reports whether the value is not the default.
func (s Setting) Changed() bool { return s.Value != s.Default }

// loaded returns a configuration as Load has read it. It is a function because fmt never prints what a function holds.
type loaded func() (Config, origins)

// Settings returns every key, in the order of the reference, with its value as YAML and where the value is from.
func (c *Config) Settings() []Setting {
	def := Default()
	defaults := values(&def)
	was, from := defaults, origins{}
	if c.loaded != nil {
		var read Config
		read, from = c.loaded()
		was = values(&read)
	}
	var all []Setting
	eachKey(reflect.ValueOf(c).Elem(), nil, func(path []string, v reflect.Value, tag reflect.StructTag) {
		key := strings.Join(path, ".")
		s := Setting{Key: key, Value: settingValue(v, tag), Default: settingValue(reflect.ValueOf(defaults[key]), tag), Doc: cmp.Or(tag.Get("doc"), tag.Get("help"))}
		s.Origin = FromProgram
		if reflect.DeepEqual(v.Interface(), was[key]) {
			s.Origin = cmp.Or(from[key], FromDefault)
		}
		all = append(all, s)
	})
	return all
}

// values returns the value of each key.
func values(c *Config) map[string]any {
	all := map[string]any{}
	eachKey(reflect.ValueOf(c).Elem(), nil, func(path []string, v reflect.Value, _ reflect.StructTag) {
		all[strings.Join(path, ".")] = v.Interface()
	})
	return all
}

// settingValue returns a value as YAML on one line, without secrets.
func settingValue(v reflect.Value, tag reflect.StructTag) string {
	if tag.Get("secret") != "" && v.Len() > 0 {
		return identity.HideURL(v.String())
	}
	switch v.Kind() {
	case reflect.String, reflect.Slice, reflect.Map:
	default:
		return exampleValue(v)
	}
	if v.Len() == 0 {
		return exampleValue(v)
	}
	value := v.Interface()
	if options, ok := value.(Debezium); ok {
		value = map[string]string(options.shown())
	}
	b, err := yaml.MarshalWithOptions(value, yaml.Flow(true))
	if err != nil {
		return "this cannot be shown as YAML"
	}
	return withoutUser.ReplaceAllString(strings.TrimSpace(string(b)), "://xxxxx@")
}

// withoutUser matches the user and the password in a URL that is not marked as a secret.
var withoutUser = regexp.MustCompile(`://[^/@\s]*:[^@\s]*@`)

// secretOption matches the names of options that hold a secret: a connector's database.password for example.
var secretOption = regexp.MustCompile(`(?i)passw|secret|jaas|token|credential`)

// shown returns the options without secrets. None of the router's options is one, but a file may have others.
func (d Debezium) shown() Debezium {
	if d == nil {
		return nil
	}
	safe := maps.Clone(d)
	for name, value := range safe {
		if secretOption.MatchString(name) && value != "" {
			safe[name] = "***"
		} else {
			safe[name] = withoutUser.ReplaceAllString(value, "://xxxxx@")
		}
	}
	return safe
}

// origins is a map of keys to the places of their values. A later place overrides an earlier one.
type origins map[string]string

// file notes the keys that a file has.
func (o origins) file(keys map[string]any, origin string) {
	eachKey(reflect.ValueOf(new(Config)).Elem(), nil, func(path []string, _ reflect.Value, _ reflect.StructTag) {
		var value any = keys
		for _, key := range path {
			section, _ := value.(map[string]any)
			value = section[key]
		}
		if value != nil {
			o[strings.Join(path, ".")] = origin
		}
	})
}

// environment notes the keys whose variables, with the prefix, have a value.
func (o origins) environment(prefix string, getenv func(string) string) {
	eachKey(reflect.ValueOf(new(Config)).Elem(), nil, func(path []string, _ reflect.Value, _ reflect.StructTag) {
		if name := envName(prefix, path); getenv(name) != "" {
			o[strings.Join(path, ".")] = "environment " + name
		}
	})
}

// loaded returns c with its origins.
func (o origins) loaded(c Config) Config {
	read := c
	c.loaded = func() (Config, origins) { return read, o }
	return c
}

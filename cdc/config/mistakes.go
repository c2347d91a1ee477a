package config

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/goccy/go-yaml"

	"github.com/walpost/walpost/cdc/misspelt"
)

// mistakes returns an error for every key of the file that does not exist and every value of the wrong kind. For wrong syntax it
// returns the parser's error.
func mistakes(text []byte) []error {
	var file, more any
	documents := yaml.NewDecoder(bytes.NewReader(text))
	if len(bytes.TrimSpace(text)) == 0 || documents.Decode(&file) != nil || file == nil {
		if err := yaml.Unmarshal(text, &file); err != nil {
			return []error{unreadable(err)}
		}
		return nil
	}
	if documents.Decode(&more) == nil && more != nil {
		return []error{errors.New("configuration: the file has more than one document (---): write one")}
	}
	top, ok := file.(map[string]any)
	if !ok {
		return []error{errors.New("configuration: the file has no keys: write keys and their values, pipeline: orders for example")}
	}
	entries, list := top["pipelines"].([]any)
	several := top["pipelines"] != nil
	delete(top, "pipelines")
	errs := wrongKeys(top, "")
	if several && !list {
		errs = append(errs, errors.New("pipelines: write a list with an entry for each pipeline: - pipeline: orders, and its other keys"))
	}
	for i, e := range entries {
		if e == nil {
			continue // Validate reports the missing keys
		}
		keys, ok := e.(map[string]any)
		name, _ := keys["pipeline"].(string)
		label := (&Config{Pipeline: name}).label(i)
		if !ok {
			errs = append(errs, fmt.Errorf("%s: %s: write the keys of a pipeline, pipeline: orders for example", label, shown(e)))
			continue
		}
		errs = append(errs, wrongKeys(keys, label+": ")...)
	}
	return errs
}

// wrongKeys returns an error for every unknown key and every value of the wrong kind, each with the label before it.
func wrongKeys(keys map[string]any, label string) (errs []error) {
	var cfg Config
	var known []string
	flat := map[string]bool{}
	eachKey(reflect.ValueOf(&cfg).Elem(), nil, func(path []string, v reflect.Value, tag reflect.StructTag) {
		known = append(known, strings.Join(path, "."))
		var value any = keys
		for i, key := range path {
			m, ok := value.(map[string]any)
			if !ok {
				if parent := strings.Join(path[:i], "."); value != nil && !flat[parent] {
					flat[parent] = true
					errs = append(errs, fmt.Errorf("%s%s: this key has no value, it holds other keys: write those below it", label, parent))
				}
				return
			}
			value = m[key]
		}
		if value == nil {
			return
		}
		b, err := yaml.Marshal(value)
		if err == nil {
			err = decode(b, v)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("%s%s: %s", label, strings.Join(path, "."), wrongValue(value, v, tag)))
		}
	})
	return append(errs, unknownKeys(keys, label, "", known)...)
}

// decode reads a value into v. It rejects 1.5 for a whole number, which the parser would read as 1.
func decode(text []byte, v reflect.Value) error {
	var value any
	if err := yaml.Unmarshal(text, &value); err != nil {
		return err
	}
	if _, fraction := value.(float64); fraction && v.Kind() == reflect.Int {
		return errors.New("a fraction")
	}
	return yaml.UnmarshalWithOptions(text, v.Addr().Interface(), yaml.Strict())
}

// wrongValue returns the text of the error about a value that v does not take, with what to write instead.
func wrongValue(value any, v reflect.Value, tag reflect.StructTag) string {
	said := shown(value)
	example := strings.Trim(said, `"`)
	if tag.Get("secret") != "" {
		said = "this"
	}
	switch value.(type) {
	case map[string]any, []any:
		example = "a, b"
	}
	switch v.Interface().(type) {
	case time.Duration:
		return said + " is not a duration: write 5ms, 2s or 1m"
	case ByteSize:
		return said + " is not a size: write 1048576, 64KiB or 4MiB"
	case bool:
		return said + " is neither true nor false: write one of them"
	case int:
		return said + " is not a whole number: write 3, for example"
	case []string:
		return fmt.Sprintf("%s is not a list of names: write [%s]", said, example)
	case map[string]string:
		return said + " does not hold pairs of names: write {order: orders}"
	}
	return said + " is more than one value: write one"
}

// shown returns a value as the file would have it, on one line and cut to 60 characters.
func shown(value any) string {
	b, err := yaml.MarshalWithOptions(value, yaml.Flow(true))
	if err != nil {
		return "this"
	}
	said := strings.Join(strings.Fields(string(b)), " ")
	if cut := []rune(said); len(cut) > 60 {
		said = string(cut[:57]) + "..."
	}
	return said
}

// unknownKeys returns an error for every key that does not exist. It looks only into keys that hold other keys of the
// configuration: the keys of kafka.rename are the user's.
func unknownKeys(keys map[string]any, label, prefix string, known []string) (errs []error) {
	for _, key := range slices.Sorted(maps.Keys(keys)) {
		path := prefix + key
		holds := slices.ContainsFunc(known, func(k string) bool { return strings.HasPrefix(k, path+".") })
		inner, _ := keys[key].(map[string]any)
		switch {
		case slices.Contains(known, path):
		case holds:
			errs = append(errs, unknownKeys(inner, label, path+".", known)...)
		default:
			errs = append(errs, fmt.Errorf("%s%s: there is no such key: %s", label, path, instead(path, known)))
		}
	}
	return errs
}

// instead returns the hint which key may be meant: one with nearly the same name, the only
// key with this name in another place, or the sections with this name.
func instead(path string, known []string) string {
	meant := misspelt.Nearest(path, known)
	sections := map[string]bool{} // a misspelt key may hold others
	for _, k := range known {
		for i := strings.LastIndex(k, "."); i > 0; i = strings.LastIndex(k[:i], ".") {
			sections[k[:i]] = true
		}
	}
	if meant == "" {
		meant = misspelt.Nearest(path, slices.Sorted(maps.Keys(sections)))
	}
	if leaf := path[strings.LastIndex(path, ".")+1:]; meant == "" {
		other := func(k string) bool { return k != leaf && !strings.HasSuffix(k, "."+leaf) }
		if elsewhere := slices.DeleteFunc(slices.Clone(known), other); len(elsewhere) == 1 {
			meant = elsewhere[0]
		} else if len(elsewhere) == 0 {
			meant = strings.Join(slices.DeleteFunc(slices.Sorted(maps.Keys(sections)), other), " or ")
		}
	}
	if meant == "" {
		return "cdc/CONFIGURATION.md lists every key"
	}
	return "did you mean " + meant + "?"
}

// unreadable reduces the parser's error to one line: the position and the mistake. It leaves out the text at the position, which
// may be a secret.
func unreadable(err error) error {
	var ye yaml.Error
	if !errors.As(err, &ye) || ye.GetToken() == nil {
		return errors.New("configuration: the file cannot be read as YAML: write keys and their values, key: value, each key once")
	}
	message := ye.GetMessage()
	switch {
	case strings.HasPrefix(message, "mapping key"):
		message = "this key is there already: write it once"
	case !errors.As(err, new(*yaml.SyntaxError)):
		message = "the text here is not a key or a value: write keys and their values, key: value"
	}
	return fmt.Errorf("configuration line %d: %s", ye.GetToken().Position.Line, message)
}

// Strays checks the names of an environment's variables. flags are the names that the program reads in addition to those of the keys
// of the pipelines. The error contains each name that is nearly one of those that the program reads, with the right name. unknown are
// the other names that begin with WALPOST_, including those of a pipeline that is not in cfgs. It leaves out the variables that
// Kubernetes sets in every container for a Service named walpost.
func Strays(names, flags []string, cfgs []Config) (unknown []string, err error) {
	var keys []string
	known := slices.Clone(flags)
	eachKey(reflect.ValueOf(new(Config)).Elem(), nil, func(path []string, _ reflect.Value, _ reflect.StructTag) {
		keys = append(keys, envName("", path))
		known = append(known, envName(environment, path))
		for i := range cfgs {
			if cfgs[i].several {
				known = append(known, envName(cfgs[i].environment(), path))
			}
		}
	})
	for _, flag := range flags {
		if key, ours := strings.CutPrefix(flag, environment); ours {
			keys = append(keys, key)
			for i := range cfgs {
				known = append(known, cfgs[i].Variable(key))
			}
		}
	}
	return misspelt.Variables(names, environment, known, func(name string) bool { return anotherPipelines(name, keys) })
}

// anotherPipelines reports whether the name consists of WALPOST_, a pipeline's name and a key.
func anotherPipelines(name string, keys []string) bool {
	return slices.ContainsFunc(keys, func(key string) bool {
		pipeline := strings.TrimSuffix(strings.TrimPrefix(name, environment), "_"+key)
		return len(environment)+len(pipeline)+len("_"+key) == len(name)
	})
}

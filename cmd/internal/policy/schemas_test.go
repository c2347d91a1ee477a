package policy_test

import (
	"encoding/json"
	"flag"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
)

var release = flag.Bool("release", false, "make the schemas of the events as they are those of the last release, if they may be")

// TestSchemasKeepWhatWasReleased compares the schemas of every service's events with those of the last release. Copies
// of these are in testdata/released. At a release: go test ./cmd/internal/policy -run Schemas -release
func TestSchemasKeepWhatWasReleased(t *testing.T) {
	root, released := filepath.Join("..", "..", ".."), filepath.Join("testdata", "released")
	files := glob(t, root, filepath.Join("*", "schemas", "*.json"))
	for _, file := range glob(t, released, filepath.Join("*", "schemas", "*.json")) {
		if !slices.Contains(files, file) {
			t.Errorf("%s: there is no such file any more; events of this version are on the topic for ever", file)
			continue
		}
		for _, what := range broken(schemaAt(t, filepath.Join(released, file)), schemaAt(t, filepath.Join(root, file))) {
			t.Errorf("%s: %s; leave it as it was, and make the change in a new version", file, what)
		}
	}
	form := regexp.MustCompile(`^[a-z_]+\.v([1-9][0-9]*)\.json$`)
	for _, file := range files {
		version := form.FindStringSubmatch(filepath.Base(file))
		properties, _ := schemaAt(t, filepath.Join(root, file))["properties"].(map[string]any)
		if said, _ := properties["schemaVersion"].(map[string]any); version == nil || fmt.Sprint(said["const"]) != version[1] {
			t.Errorf("%s: the name must end in .v and the version that schemaVersion must be, as in order_paid.v2.json; it is %v", file, said["const"])
		}
	}
	if len(files) < 8 {
		t.Errorf("only %d schemas found", len(files))
	}
	if !*release || t.Failed() {
		return
	}
	for _, file := range files {
		text, err := os.ReadFile(filepath.Join(root, file))
		if err == nil {
			err = os.MkdirAll(filepath.Dir(filepath.Join(released, file)), 0o755)
		}
		if err == nil {
			err = os.WriteFile(filepath.Join(released, file), text, 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

func glob(t *testing.T, root, pattern string) []string {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(root, pattern))
	if err != nil || len(found) == 0 {
		t.Fatalf("no schemas in %s (%v)", root, err)
	}
	for i := range found {
		if found[i], err = filepath.Rel(root, found[i]); err != nil {
			t.Fatal(err)
		}
	}
	return found
}

func schemaAt(t *testing.T, path string) (schema map[string]any) {
	t.Helper()
	text, err := os.ReadFile(path)
	if err == nil {
		err = json.Unmarshal(text, &schema)
	}
	if err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	return schema
}

// broken returns the changes of a schema that are not allowed. Consumers read events that were written before the
// change, and old consumers read events that were written after it. So within a version a schema may gain optional
// fields and better words, and nothing else.
func broken(old, now map[string]any) []string {
	var found []string
	compare("", inline(old, old), inline(now, now), func(format string, args ...any) { found = append(found, fmt.Sprintf(format, args...)) })
	slices.Sort(found)
	return found
}

var words = []string{"$schema", "$comment", "$defs", "title", "description", "examples"}

func compare(at string, old, now any, report func(format string, args ...any)) {
	before, isObject := old.(map[string]any)
	after, stillIs := now.(map[string]any)
	if !isObject || !stillIs {
		if !reflect.DeepEqual(old, now) {
			report("%s was %v and is %v", at, old, now)
		}
		return
	}
	keywords := maps.Clone(before)
	maps.Copy(keywords, after)
	for keyword := range keywords {
		was, is := before[keyword], after[keyword]
		switch keyword {
		case "properties":
			fields, _ := is.(map[string]any)
			earlier, _ := was.(map[string]any)
			for name, field := range earlier {
				if fields[name] == nil {
					report("%s/%s was removed", at, name)
					continue
				}
				compare(at+"/"+name, field, fields[name], report)
			}
		case "items":
			compare(at+"/items", was, is, report)
		case "required", "enum":
			earlier, values := texts(was), texts(is)
			for _, value := range values {
				if !slices.Contains(earlier, value) {
					report("%s: %s was added to %s", at, value, keyword)
				}
			}
			for _, value := range earlier {
				if !slices.Contains(values, value) {
					report("%s: %s was removed from %s", at, value, keyword)
				}
			}
		default:
			if !slices.Contains(words, keyword) && !reflect.DeepEqual(was, is) {
				report("%s: %s was %v and is %v", at, keyword, was, is)
			}
		}
	}
}

func texts(list any) (found []string) {
	values, _ := list.([]any)
	for _, value := range values {
		text, _ := json.Marshal(value)
		found = append(found, string(text))
	}
	return found
}

// inline replaces each $ref by the schema that it points to.
func inline(node any, schema map[string]any) any {
	switch node := node.(type) {
	case map[string]any:
		if ref, _ := node["$ref"].(string); ref != "" {
			defs, _ := schema["$defs"].(map[string]any)
			target, _ := inline(defs[strings.TrimPrefix(ref, "#/$defs/")], schema).(map[string]any)
			whole := maps.Clone(target)
			for keyword, value := range node {
				if keyword != "$ref" {
					whole[keyword] = inline(value, schema)
				}
			}
			return whole
		}
		whole := map[string]any{}
		for keyword, value := range node {
			whole[keyword] = inline(value, schema)
		}
		return whole
	case []any:
		whole := make([]any, len(node))
		for i := range node {
			whole[i] = inline(node[i], schema)
		}
		return whole
	}
	return node
}

func TestSchemasThatBreakAreToldFromThoseThatDoNot(t *testing.T) {
	const path = "testdata/released/orders/schemas/order_paid.v1.json"
	// at returns the part of a schema that this path of keywords leads to.
	at := func(schema map[string]any, path ...string) map[string]any {
		for _, step := range path {
			schema, _ = schema[step].(map[string]any)
		}
		return schema
	}
	line := []string{"properties", "items", "items"}
	for _, c := range []struct {
		name, want string // "" may be
		change     func(schema map[string]any)
	}{
		{"nothing", "", func(map[string]any) {}},
		{"other words", "", func(s map[string]any) { s["description"], s["title"], s["$comment"] = "x", "y", "z" }},
		{"another order", "", func(s map[string]any) { slices.Reverse(s["required"].([]any)) }},
		{"a new field", "", func(s map[string]any) {
			at(s, "properties")["giftWrap"] = map[string]any{"type": "object", "required": []any{"ribbon"}}
		}},
		{"a new field of a line", "", func(s map[string]any) {
			at(s, append(line, "properties")...)["weight"] = map[string]any{"type": "integer"}
		}},
		{"a definition in its place", "", func(s map[string]any) {
			at(s, "properties")["totalAmount"] = at(s, "$defs", "amount")
			delete(s, "$defs")
			at(s, append(line, "properties")...)["unitPrice"] = at(s, "properties", "totalAmount")
		}},

		{"a field removed", "/currency was removed", func(s map[string]any) { delete(at(s, "properties"), "currency") }},
		{"a field renamed", "/buyerId was removed", func(s map[string]any) {
			at(s, "properties")["customerId"] = at(s, "properties", "buyerId")
			delete(at(s, "properties"), "buyerId")
		}},
		{"a line's field removed", "/items/items/sku was removed", func(s map[string]any) { delete(at(s, append(line, "properties")...), "sku") }},
		{"all fields removed", "/orderId was removed", func(s map[string]any) { delete(s, "properties") }},
		{"a type changed", "/orderNumber: type was string and is integer", func(s map[string]any) { at(s, "properties", "orderNumber")["type"] = "integer" }},
		{"null allowed", "/currency: type was string and is [string null]", func(s map[string]any) { at(s, "properties", "currency")["type"] = []any{"string", "null"} }},
		{"another type of line", "/items: type was array", func(s map[string]any) { at(s, "properties", "items")["type"] = "object" }},
		{"lines of anything", "/items/items was", func(s map[string]any) { delete(at(s, "properties", "items"), "items") }},
		{"required added", `"giftWrap" was added to required`, func(s map[string]any) {
			at(s, "properties")["giftWrap"] = map[string]any{"type": "boolean"}
			s["required"] = append(s["required"].([]any), "giftWrap")
		}},
		{"required in a line added", `/items/items: "weight" was added to required`, func(s map[string]any) {
			at(s, line...)["required"] = append(at(s, line...)["required"].([]any), "weight")
		}},
		{"required no more", `"eventId" was removed from required`, func(s map[string]any) { s["required"] = s["required"].([]any)[1:] }},
		{"a value removed", `/currency: "USD" was removed from enum`, func(s map[string]any) { at(s, "properties", "currency")["enum"] = []any{"EUR"} }},
		{"a value added", `/currency: "CHF" was added to enum`, func(s map[string]any) { at(s, "properties", "currency")["enum"] = []any{"EUR", "USD", "CHF"} }},
		{"a pattern narrowed", "/buyerId: pattern was", func(s map[string]any) { at(s, "properties", "buyerId")["pattern"] = "^[a-z]{1,100}$" }},
		{"a pattern of a definition", "/totalAmount: pattern was", func(s map[string]any) { at(s, "$defs", "amount")["pattern"] = `^\d+$` }},
		{"a constant changed", "/eventType: const was OrderPaid and is OrderCharged", func(s map[string]any) { at(s, "properties", "eventType")["const"] = "OrderCharged" }},
		{"another version", "/schemaVersion: const was 1 and is 2", func(s map[string]any) { at(s, "properties", "schemaVersion")["const"] = 2.0 }},
		{"fewer pieces", "/items/items/quantity: maximum was 10000 and is 10", func(s map[string]any) { at(s, append(line, "properties", "quantity")...)["maximum"] = 10.0 }},
		{"another format", "/orderId: format was uuid and is <nil>", func(s map[string]any) { delete(at(s, "properties", "orderId"), "format") }},
		{"no field beside", ": additionalProperties was <nil> and is false", func(s map[string]any) { s["additionalProperties"] = false }},
		{"an alternative", "/currency: anyOf was <nil>", func(s map[string]any) {
			at(s, "properties", "currency")["anyOf"] = []any{map[string]any{"const": "EUR"}}
		}},
	} {
		old, now := schemaAt(t, path), schemaAt(t, path)
		for _, s := range []map[string]any{old, now} {
			at(s, "properties", "currency")["enum"] = []any{"EUR", "USD"}
		}
		c.change(now)
		found := broken(old, now)
		if c.want == "" && len(found) > 0 || c.want != "" && !slices.ContainsFunc(found, func(what string) bool { return strings.HasPrefix(what, c.want) || strings.Contains(what, ": "+c.want) }) {
			t.Errorf("%s: found %q, want %q", c.name, found, c.want)
		}
	}
}

package cdc

import (
	"reflect"
	"testing"
)

// TestTeeTellsEachObserverEverything checks that each observer gets all facts, also next to one that has no
// functions.
func TestTeeTellsEachObserverEverything(t *testing.T) {
	told := map[string]int{}
	var all Observer
	fields := reflect.ValueOf(&all).Elem()
	for i := range fields.NumField() {
		name := fields.Type().Field(i).Name
		fields.Field(i).Set(reflect.MakeFunc(fields.Field(i).Type(), func([]reflect.Value) []reflect.Value {
			told[name]++
			return nil
		}))
	}
	tee := reflect.ValueOf(Tee(all, Observer{}, all))
	for i := range tee.NumField() {
		f, name := tee.Field(i), tee.Type().Field(i).Name
		if f.IsNil() {
			t.Errorf("%s: nobody is told", name)
			continue
		}
		var args []reflect.Value
		for j := range f.Type().NumIn() {
			args = append(args, reflect.Zero(f.Type().In(j)))
		}
		f.Call(args)
		if told[name] != 2 {
			t.Errorf("%s: %d of 2 observers were told", name, told[name])
		}
	}
}

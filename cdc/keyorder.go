package cdc

// KeyOrder follows the order of keys through dead letters, from the first to the last, while an operator's command
// decides which of them to publish. It is the counterpart of keyHolds, by which a relay holds later rows of a key
// (I3): a key's dead letters may be published from the first on, none may overtake one that stays, and a row that was
// only held goes with the dead letter that it waited for.
type KeyOrder struct {
	stays map[string]string // by name of an order (see holds): the key of a dead letter that stays
	goes  map[string]bool   // by name of an order: the last dead letter goes
}

// NewKeyOrder returns a KeyOrder that has seen no dead letter.
func NewKeyOrder() *KeyOrder { return &KeyOrder{map[string]string{}, map[string]bool{}} }

// Behind returns the key of the staying dead letter that this one must not overtake; empty if there is none.
func (o *KeyOrder) Behind(d *DeadLetter) string {
	for _, of := range d.Holds() {
		if key := o.stays[of]; key != "" {
			return key
		}
	}
	return ""
}

// Follows reports whether the dead letter was held only because of one that goes.
func (o *KeyOrder) Follows(d *DeadLetter) bool {
	for _, of := range d.Holds() {
		if o.goes[of] {
			return d.HeldFor != ""
		}
	}
	return false
}

// Mark records whether the dead letter goes.
func (o *KeyOrder) Mark(d *DeadLetter, goes bool) {
	for _, of := range d.Holds() {
		if goes {
			o.goes[of] = true
		} else {
			o.stays[of] = d.Key()
		}
	}
}

package cdc

// KeyOrder follows the order of keys through dead letters, from the first to the last, while somebody decides which of
// them to publish after all. It is the other half of keyHolds, by which a relay holds later rows of a key back (I3): a
// key's dead letters may be published from the first on, none may overtake one that stays, and what was only held goes
// with the one it was held for.
type KeyOrder struct {
	stays map[string]string // by identity (see holds): the key of a dead letter that stays
	goes  map[string]bool   // by identity: the last dead letter goes
}

// NewKeyOrder returns one that has seen no dead letter.
func NewKeyOrder() *KeyOrder { return &KeyOrder{map[string]string{}, map[string]bool{}} }

// Behind returns the key of the dead letter that stays and that this one must not overtake; empty where there is none.
func (o *KeyOrder) Behind(d *DeadLetter) string {
	for _, of := range d.Holds() {
		if key := o.stays[of]; key != "" {
			return key
		}
	}
	return ""
}

// Follows reports whether the dead letter was only held for one that goes.
func (o *KeyOrder) Follows(d *DeadLetter) bool {
	for _, of := range d.Holds() {
		if o.goes[of] {
			return d.HeldFor != ""
		}
	}
	return false
}

// Mark notes whether the dead letter goes.
func (o *KeyOrder) Mark(d *DeadLetter, goes bool) {
	for _, of := range d.Holds() {
		if goes {
			o.goes[of] = true
		} else {
			o.stays[of] = d.Key()
		}
	}
}

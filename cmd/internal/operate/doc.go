// Package operate is the commands with which people look after consumer groups: what was parked, and replay.
package operate

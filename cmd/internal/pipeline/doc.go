// Package pipeline puts a configuration's source, route and sink together: to relay, to prepare both sides (init), and to
// tell how they stand (status).
package pipeline

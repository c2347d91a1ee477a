// Package pipeline runs and operates a pipeline: one outbox on its way to one Kafka. The command walpost uses only this package, so any
// other Go process can do the same.
//
//	cfg := config.Default() // or config.Load(path, os.Getenv)
//	…
//	p, err := pipeline.New(cfg, pipeline.Options{Log: log, Registerer: prometheus.DefaultRegisterer})
//	_, err = p.Init(ctx, pipeline.InitOptions{AdminURL: url}) // once, with an administrator's rights
//	err = p.Run(ctx)                                         // until ctx ends, through every outage
//
// Run logs to the logger of the [Options] and registers its metrics with their registerer. It changes nothing else in the process: it
// handles no signal, sets no global, opens no listener and does not exit. When ctx ends, Run delivers and confirms the rows that it has
// received, within [config.Config].ShutdownTimeout. A process that dies loses nothing: rows that are not confirmed stay in the slot, and
// the next relay delivers them.
//
// Any number of processes may run the same pipeline, because the slot is the lock. One streams. The others stand by and check once a
// second whether the slot is free.
//
// An operator's verbs are methods: Init, Remove, Examine, Status, Where, Tail, Adopt, Skip, Replay, DeadLetters, Redrive, Drop, Cleanup and
// MigrateSource. Each takes its options and returns a value; none prints. Verbs that can take long call a [Progress].
//
// A service that takes requests does not depend on its relay: while Kafka is away, events wait in the outbox. Use Ready for a probe of
// the relay only, not for a probe of the service.
package pipeline

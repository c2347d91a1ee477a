// Package pipeline is one outbox on its way to one Kafka: a [Pipeline] runs, and people operate it. What `walpost` does, any process can
// do.
//
//	cfg := config.Default() // or config.Load(path, os.Getenv)
//	…
//	p, err := pipeline.New(cfg, pipeline.Options{Log: log, Registerer: prometheus.DefaultRegisterer})
//	_, err = p.Init(ctx, pipeline.InitOptions{AdminURL: url}) // once, with an administrator's rights
//	err = p.Run(ctx)                                         // until ctx ends, through every outage
//
// Run logs to the logger it is given and registers its metrics with the registerer it is given. It touches nothing of the process: no
// signal, no global, no listener, no exit. When ctx ends, Run delivers and confirms what it has received, within
// [config.Config].ShutdownTimeout. A process that dies loses nothing: what is not confirmed stays in the slot, and the next relay
// delivers it.
//
// Any number of processes may run the same pipeline: the slot is the lock. One streams, the others stand by, and look once a second
// whether it is free.
//
// An operator's verbs are methods: Init, Remove, Status, Where, Adopt, Skip, Replay, DeadLetters, Redrive, Drop, Cleanup and
// MigrateSource. Each takes its options and returns a value; none prints. Those that can take long call a [Progress].
//
// A service that takes requests does not wait for its relay: while Kafka is away, events wait in the outbox. So Ready is for a probe of the
// relay alone.
package pipeline

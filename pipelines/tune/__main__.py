from pipelines.tune.step import main

raise SystemExit(main())

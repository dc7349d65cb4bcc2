from pipelines.train.step import main

raise SystemExit(main())
